"""Finds the imports in a source file, also those by `import_module` and similar functions, without importing.

A dynamic import is *readable* if its target is written in the source: as a text, an f-string, a sum, a constant of the
file or a table of the file. Other uses of functions that can import are *hidden*: their targets are known only at run
time.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

BY_NAME = frozenset({"importlib.import_module", "importlib.__import__", "builtins.__import__", "__import__"})
"""Functions that import the module with a given name."""
LOADERS = BY_NAME | {
    *("importlib.util.spec_from_file_location", "importlib.util.module_from_spec", "importlib.reload"),
    *("importlib.machinery.SourceFileLoader", "importlib.machinery.SourcelessFileLoader"),
    *("pkgutil.resolve_name", "pydoc.locate", "pydoc.importfile", "runpy.run_module", "runpy.run_path"),
    *("exec", "eval", "builtins.exec", "builtins.eval", "__builtins__"),
}
"""All functions that can import."""
HOLDERS = frozenset({"importlib", "importlib.util", "importlib.machinery", "builtins", "pkgutil", "pydoc", "runpy"})
"""Modules with functions that can import. If one of these modules is used as a value, any of its functions may be
called."""
NAMES = frozenset({"import_module", "__import__", "__builtins__"})
"""Names of functions that can import. A text that contains one of these names may be used to look up the function."""
PLACE = re.compile(r"((?:esper|actors|drills)(?:\.\w+)*):\w+")
"""`module:attribute`, the form in the table of commands and in entry points."""


@dataclass(frozen=True)
class Import:
    """One imported name. `target` is absolute: a module, or a name in a module."""

    line: int
    target: str


@dataclass(frozen=True)
class Module:
    """One source file with its dotted name."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @property
    def package(self) -> str:
        """The package to which relative imports of this file refer."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    def imports(self, nodes: Iterable[ast.AST] | None = None) -> Iterator[Import]:
        """Yield every import statement and every readable dynamic import among `nodes`. None: all nodes of the file."""
        for node in ast.walk(self.tree) if nodes is None else nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from (Import(node.lineno, target) for target in self._bound(node).values())
            elif isinstance(node, ast.Call):
                yield from (Import(node.lineno, target) for target in self._targets(node))

    def places(self) -> Iterator[Import]:
        """Yield every module of this repository that is named in the file as `module:attribute`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and (m := PLACE.fullmatch(node.value)):
                yield Import(node.lineno, m[1])

    def hidden(self) -> list[int]:
        """Return the lines of all hidden imports."""
        read = {id(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call) and self._targets(node)}
        inner = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}
        found = []
        for node in ast.walk(self.tree):
            match node:
                case ast.Attribute() | ast.Name(ctx=ast.Load()) if id(node) not in read | inner:
                    if _can_import(self._dotted(node)):
                        found.append(node.lineno)
                case ast.Constant(value=str(text)) if text in NAMES:
                    found.append(node.lineno)
                case ast.ImportFrom(module=str(source), names=[ast.alias(name="*")]) if source in HOLDERS:
                    found.append(node.lineno)
        return sorted(found)

    # -- names ---------------------------------------------------------------------------------------------------

    def origin(self, node: ast.ImportFrom) -> str:
        """Return the absolute name of the module after `from`."""
        return self._absolute("." * node.level + (node.module or ""), self.package)

    def _bound(self, node: ast.Import | ast.ImportFrom) -> dict[str, str]:
        """Return local name -> absolute target, for each name of an import statement.

        Without `as`, the local name is the path.
        """
        if isinstance(node, ast.Import):
            return {alias.asname or alias.name: alias.name for alias in node.names}
        return {alias.asname or alias.name: f"{self.origin(node)}.{alias.name}" for alias in node.names}

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """Return local name -> the module or object that the file's imports bind to it."""
        found = {name: name for name in ("__import__", "exec", "eval", "__builtins__")}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name, target in self._bound(node).items():
                    head = name.partition(".")[0]
                    # if a name is bound twice, a target that can import takes precedence
                    if head not in found or not _can_import(found[head]):
                        found[head] = _as_loader(target) if name == head else head
        return found

    def _dotted(self, node: ast.AST) -> str:
        """Return the absolute dotted name of a name or a chain of attributes. "": it does not begin with an import."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):  # for example the result of a call; it is known only at run time
            return "__builtins__" if NAMES & set(parts) else ""
        return ".".join([self._aliases[node.id], *reversed(parts)]) if node.id in self._aliases else ""

    @staticmethod
    def _absolute(target: str, package: str) -> str:
        level = len(target) - len(target.lstrip("."))
        if not level:
            return target
        parents = package.split(".")
        return ".".join([*parents[: len(parents) - level + 1], *filter(None, [target[level:]])])

    # -- targets of dynamic imports ------------------------------------------------------------------------------

    def _targets(self, call: ast.Call) -> list[str]:
        """Return the modules that a call may import.

        Empty: the call imports none, or the source does not contain their names.
        """
        if self._dotted(call.func) not in BY_NAME:
            return []
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        where = call.args[0] if call.args else named.get("name")
        second = call.args[1] if len(call.args) > 1 else named.get("package")
        if where is None or None in named or "level" in named or len(call.args) > 4:
            return []
        packages = self._texts(second) if second is not None else [self.package]
        targets = self._texts(where)
        if any(target.startswith(".") for target in targets):
            return [self._absolute(target, package) for target in targets for package in packages]
        return targets

    def _texts(self, node: ast.expr) -> list[str]:
        """Return the possible texts of an expression. Empty: the source does not contain them."""
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(joined) for joined in product(*map(self._texts, parts))]
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return self._texts(value)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [one + other for one, other in product(self._texts(left), self._texts(right))]
            case ast.IfExp(body=body, orelse=other):
                either = self._texts(body), self._texts(other)
                return [*either[0], *either[1]] if all(either) else []
            case ast.Name(id="__name__"):
                return [self.name]
            case ast.Name(id="__package__"):
                return [self.package]
            case ast.Name(id=name) if name in self._constants:
                return self._texts(self._constants[name])
            case ast.Subscript(value=ast.Name(id=name)) if name in self._constants and name not in self._exposed:
                table = self._constants[name]
                rows = [self._texts(value) for value in table.values] if isinstance(table, ast.Dict) else []
                return [text for row in rows for text in row] if all(rows) else []
        return []

    @cached_property
    def _constants(self) -> dict[str, ast.expr]:
        """Name -> value, for each name that is bound only once in the file, by a statement outside of functions."""
        bound = Counter(node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name) and _binds(node))
        bound.update(node.arg for node in ast.walk(self.tree) if isinstance(node, ast.arg))
        bound.update(name for node in ast.walk(self.tree) for name in _other_names(node))
        values: dict[str, ast.expr] = {}
        for node in self.tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    values[name] = value
        return {name: value for name, value in values.items() if bound[name] == 1}

    @cached_property
    def _exposed(self) -> set[str]:
        """Names that are used for more than lookups and comparisons.

        A table that is bound to one of these names may be changed in place.
        """
        safe: set[int] = set()
        for node in ast.walk(self.tree):
            match node:
                case ast.Subscript(value=table, ctx=ast.Load()):
                    safe.add(id(table))
                case ast.Compare(comparators=others):
                    safe.update(map(id, others))
        return {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and not _binds(n) and id(n) not in safe}


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes that run at the import of the module.

    Bodies of functions and of `if TYPE_CHECKING` do not run.
    """
    for child in _run_at_once(tree):
        yield child
        yield from at_import(child)


def _run_at_once(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults))
        case ast.Lambda():
            yield from (*node.args.defaults, *filter(None, node.args.kw_defaults))
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            yield from node.orelse
        case _:
            yield from ast.iter_child_nodes(node)


def _binds(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _other_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds without `ast.Name`."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name


def _can_import(dotted: str) -> bool:
    """Return whether a dotted name is a function that can import, an attribute of it, or a module that has it."""
    return dotted in HOLDERS or any(f"{dotted}.".startswith(f"{loader}.") for loader in LOADERS)


def _as_loader(target: str) -> str:
    """If a name is an import function that another module re-exports, return its name in `importlib`.

    Return other names unchanged.
    """
    last = target.rpartition(".")[2]
    return f"importlib.{last}" if last in ("import_module", "__import__") else target
