"""Lists the places in Python source where a failure may be hidden.

Usage: strictness.py PATH... (files or folders). It prints one line for each place.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARKS = re.compile(r"\b(TODO|FIXME|XXX|HACK|placeholder|type: ignore|noqa|pragma: no cover)\b")
RETRIES = frozenset({"max_restarts", "max_task_retries", "max_retries"})
"""Options for Ray's retries. A value other than 0 is listed, because Ray repeats a method without a report."""
CHECKERS = ("raises", "warns", "assert", "check")
"""Parts of names of functions that can fail a test, as `assert` can."""


@dataclass(frozen=True)
class Place:
    """One place for a review: its line, the function or class around it ("" at module level), and a description."""

    line: int
    where: str
    what: str


def scan(source: str, *, is_test: bool) -> list[Place]:
    """Return all places in `source`, by line.

    Raises:
        SyntaxError: the source is not Python.
    """
    visitor = _Visitor(is_test)
    visitor.visit(ast.parse(source))
    marks = [
        Place(token.start[0], visitor.where(token.start[0]), f"says {mark}")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
        for mark in MARKS.findall(token.string)
    ]
    return sorted([*visitor.places, *marks], key=lambda place: place.line)


def always_raises(body: list[ast.stmt]) -> bool:
    """Return whether every path through `body` ends with a `raise`."""
    for statement in body:
        match statement:
            case ast.Raise():
                return True
            case ast.If(body=then, orelse=otherwise) if always_raises(then) and always_raises(otherwise):
                return True
            case ast.With(body=inner) | ast.AsyncWith(body=inner) if always_raises(inner):
                return True
    return False


def leaves(body: list[ast.stmt]) -> bool:
    """Return whether `body` contains `return`, `break` or `continue`."""
    return any(isinstance(n, ast.Return | ast.Break | ast.Continue) for s in body for n in ast.walk(s))


def silent(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(s, ast.Pass | ast.Continue | ast.Break)
        or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in body
    )


@dataclass
class _Visitor(ast.NodeVisitor):
    is_test: bool
    places: list[Place] = field(default_factory=list)
    scope: list[str] = field(default_factory=list)
    spans: list[tuple[range, str]] = field(default_factory=list)

    def place(self, node: ast.expr | ast.stmt | ast.ExceptHandler, what: str) -> None:
        self.places.append(Place(node.lineno, ".".join(self.scope), what))

    def where(self, line: int) -> str:
        """Return the innermost function or class around a line. Call it after all nodes were visited."""
        return next((name for lines, name in reversed(self.spans) if line in lines), "")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if self.is_test and node.name.startswith("test") and not any(map(_can_fail, ast.walk(node))):
            self.place(node, f"{node.name} asserts nothing")
        self.inside(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.scope.append(node.name)
        self.spans.append((range(node.lineno, (node.end_lineno or node.lineno) + 1), ".".join(self.scope)))
        self.generic_visit(node)
        self.scope.pop()

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        caught = ast.unparse(node.type) if node.type else "everything"
        if silent(node.body):
            self.place(node, f"swallows {caught}")
        elif not always_raises(node.body):
            self.place(node, f"answers {caught}")
        elif leaves(node.body):
            self.place(node, f"answers {caught} on some path")
        self.generic_visit(node)

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        if leaves(node.finalbody):
            self.place(node.finalbody[0], "leaves by finally")
        self.generic_visit(node)

    def visit_TryStar(self, node: ast.TryStar) -> None:
        self.visit_Try(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id == "NotImplementedError":
            self.place(node, node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = ast.unparse(node)
        if name.endswith(("mark.skip", "mark.skipif", "mark.xfail", "mark.filterwarnings")):
            self.place(node, name)
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if (node.module, alias.name) in {("torch", "load"), ("time", "sleep"), ("asyncio", "sleep")}:
                self.place(node, f"{node.module}.{alias.name} imported bare")
            if "mock" in f"{node.module}.{alias.name}".split("."):
                self.place(node, "mock")

    def visit_Call(self, node: ast.Call) -> None:
        for what in _call(node, self.is_test):
            self.place(node, what)
        self.generic_visit(node)


def _can_fail(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return any(word in ast.unparse(node.func).lower() for word in CHECKERS)
    return isinstance(node, ast.Assert)


def _call(node: ast.Call, is_test: bool) -> Iterator[str]:
    """Yield reasons to review a call, by its name and its arguments."""
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
    if last == "suppress":
        yield "suppress"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in {"pickle.load", "pickle.loads"}:
        yield name
    if is_test and name in {"time.sleep", "asyncio.sleep"}:
        yield f"{name} in a test"
    if name in {"pytest.skip", "pytest.xfail", "pytest.importorskip"}:
        yield name
    if name == "getattr" and len(node.args) == 3:
        yield "getattr with a default"
    if last in {"get", "pop"} and "." in name and (len(node.args) == 2 or "default" in given):
        yield f".{last} with a default"
    if last in {"filterwarnings", "simplefilter"} and ast.unparse(node).startswith(f"{name}('ignore'"):
        yield "ignores warnings"
    yield from _knobs(given)


def _knobs(given: dict[str, str]) -> Iterator[str]:
    """Yield the keyword arguments that hide a failure."""
    yield from (f"{knob} is not 0" for knob in sorted(RETRIES & given.keys()) if given[knob] != "0")
    yield from (f"{knob}=True" for knob in ("ignore_errors", "return_exceptions") if given.get(knob) == "True")
    if given.get("errors") in {"'ignore'", "'replace'"}:
        yield f"errors={given['errors']}"


def main(arguments: list[str]) -> None:
    roots = [Path(argument) for argument in arguments]
    for path in (file for root in roots for file in ([root] if root.is_file() else sorted(root.rglob("*.py")))):
        for place in scan(path.read_text(encoding="utf-8"), is_test="tests" in path.parts):
            print(f"{path}:{place.line} {place.where}: {place.what}")


if __name__ == "__main__":
    main(sys.argv[1:])
