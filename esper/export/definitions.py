"""Writes Python definitions as text, with every definition that they use.

It reads source and evaluates no code. Definitions of esper and of the modules in `own` are written into the text. Names
from other modules are imported.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import resolve_name

from esper.errors import CannotBeWritten

FUTURE = "from __future__ import annotations\n"


@dataclass(frozen=True)
class Source:
    """The source of a module, with its top-level statements by the names that they bind."""

    name: str
    lines: list[str]
    package: str
    nodes: dict[str, ast.stmt]

    @classmethod
    def of(cls, name: str) -> Source:
        """Raises: CannotBeWritten: the module cannot be imported by its name, or has no source."""
        try:
            module = importlib.import_module(name)
            text = inspect.getsource(module)
        except (ImportError, OSError, TypeError) as error:
            raise CannotBeWritten(f"the source of module {name!r} cannot be read: {error}") from error
        nodes = {bound: node for node in ast.parse(text).body for bound in _bound(node)}
        lines = text.split("\n")  # `splitlines` also splits at characters that do not end a line of Python source
        return cls(name, lines, module.__package__ or "", nodes)

    def text(self, node: ast.stmt, leave_out: set[str]) -> str:
        """Return the source text of a definition, without the decorators whose names are in `leave_out`."""
        start = node.lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            decorators = [one for one in node.decorator_list if _root(one) not in leave_out]
            above = [f"@{ast.unparse(one)}" for one in decorators]
            return "\n".join([*above, *self.lines[start - 1 : node.end_lineno]])
        return "\n".join(self.lines[start - 1 : node.end_lineno])


@dataclass
class Definitions:
    """Definitions in an order in which they can be evaluated, with the imports that they need."""

    own: frozenset[str] = frozenset()
    """Modules whose definitions are written into the text, in addition to those of esper."""
    texts: list[str] = field(default_factory=list)
    _modules: set[str] = field(default_factory=set)
    """Imports of whole modules: `torch`, `numpy as np`."""
    _names: dict[str, set[str]] = field(default_factory=dict)
    """The imported names of each module."""
    _sources: dict[str, Source] = field(default_factory=dict)
    _taken: dict[str, str] = field(default_factory=dict)
    """Origin of each name in the text: the module that defines it, or the path of an import."""

    def add(self, module: str, name: str) -> None:
        """Add the top-level definition of `name` in a module, after the definitions that it uses.

        Raises:
            CannotBeWritten: the name, or a name that it uses, is not defined at the top level of a module with readable
                source; or two definitions have the same name.
        """
        source = self._source(module)
        if name not in source.nodes:
            if hasattr(builtins, name):
                return
            raise CannotBeWritten(f"{module} uses {name!r}, which is not defined at its top")
        node = source.nodes[name]
        if isinstance(node, ast.Import):
            self._import(module, node, name)
        elif isinstance(node, ast.ImportFrom):
            self._import_from(source, node, name)
        elif self._claim(name, module):
            self._define(source, node)

    def has(self, module: str, name: str) -> bool:
        """Return whether the definition of this name in this module was added."""
        return self._taken.get(name) == module

    def free(self, name: str) -> str:
        """Return a name that is not used in the text. It is `name`, with `_network` appended until it is unused."""
        while name in self._taken:
            name += "_network"
        return name

    def __str__(self) -> str:
        """Return the text of the imports and definitions."""
        lines = [f"import {module}" for module in self._modules]
        lines += [f"from {module} import {', '.join(sorted(names))}" for module, names in self._names.items()]
        return "\n".join(sorted(lines)) + "\n\n\n" + "\n\n\n".join(self.texts)

    def import_name(self, module: str, name: str, alias: str | None = None) -> None:
        """Add an import by name. Raises: CannotBeWritten: the name is taken."""
        self._claim(alias or name, f"{module}.{name}")
        self._names.setdefault(module, set()).add(f"{name} as {alias}" if alias else name)

    def import_module(self, module: str, alias: str | None = None) -> None:
        """Add an import of a whole module. Raises: CannotBeWritten: the name is taken."""
        if alias is None:
            self._claim(module.partition(".")[0], module.partition(".")[0])
        else:
            self._claim(alias, module)
        self._modules.add(f"{module} as {alias}" if alias else module)

    def _source(self, module: str) -> Source:
        if module not in self._sources:
            self._sources[module] = Source.of(module)
        return self._sources[module]

    def _is_own(self, module: str) -> bool:
        return module in self.own or module.partition(".")[0] == "esper"

    def _claim(self, name: str, by: str) -> bool:
        """Reserve a name. Returns: True if the name is new. Raises: CannotBeWritten: another definition has the
        name.
        """
        if name in self._taken and self._taken[name] != by:
            raise CannotBeWritten(f"{self._taken[name]} and {by} both define {name!r}; rename yours")
        new = name not in self._taken
        self._taken[name] = by
        return new

    def _define(self, source: Source, node: ast.stmt) -> None:
        of_esper = {name for name, one in source.nodes.items() if self._is_import_of_esper(source, one)}
        text = source.text(node, of_esper if source.name in self.own else set())
        for used in sorted(_used(text)):
            self.add(source.name, used)
        for named in sorted(_annotations(text) & source.nodes.keys()):
            if not self._is_import_of_esper(source, source.nodes[named]):  # annotations are never evaluated
                self.add(source.name, named)
        self.texts.append(text)

    def _is_import_of_esper(self, source: Source, node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom):
            return _origin(source, node).partition(".")[0] == "esper"
        return isinstance(node, ast.Import) and any(one.name.partition(".")[0] == "esper" for one in node.names)

    def _import(self, module: str, node: ast.Import, name: str) -> None:
        alias = next(one for one in node.names if _bound_as(one) == name)
        if self._is_own(alias.name):
            raise CannotBeWritten(f"{module} uses module {alias.name} as a whole; import what it needs by name")
        self.import_module(alias.name, alias.asname)

    def _import_from(self, source: Source, node: ast.ImportFrom, name: str) -> None:
        alias = next(one for one in node.names if _bound_as(one) == name)
        origin = _origin(source, node)
        if not self._is_own(origin):
            self.import_name(origin, alias.name, alias.asname)
            return
        self.add(origin, alias.name)
        if name != alias.name and self._claim(name, source.name):
            self.texts.append(f"{name} = {alias.name}")


def _bound(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a top-level statement binds."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from map(_bound_as, names)


def _bound_as(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _origin(source: Source, node: ast.ImportFrom) -> str:
    """Return the absolute name of the module from which a statement imports."""
    return resolve_name("." * node.level + (node.module or ""), source.package)


def _root(decorator: ast.expr) -> str:
    """Return the first name of a decorator: `name` of `name.attribute(...)`."""
    while isinstance(decorator, ast.Call | ast.Attribute):
        decorator = decorator.func if isinstance(decorator, ast.Call) else decorator.value
    return decorator.id if isinstance(decorator, ast.Name) else ""


def _annotations(text: str) -> set[str]:
    """Return the names in the annotations of a definition."""
    parts: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts.append(node.returns)
    return {one.id for part in parts if part is not None for one in ast.walk(part) if isinstance(one, ast.Name)}


def _used(text: str) -> set[str]:
    """Return the global names that a definition uses. Names in annotations are left out, because annotations are never
    evaluated."""

    def of(table: symtable.SymbolTable) -> Iterator[str]:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                yield symbol.get_name()
        for inner in table.get_children():
            yield from of(inner)

    return set(of(symtable.symtable(FUTURE + text, "<definition>", "exec")))
