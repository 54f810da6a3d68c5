"""The source of esper, and the names in its calls. By `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for room in ("esper", "actors", "drills") for path in sorted((ROOT / room).rglob("*.py"))]


def called(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def words(argument: ast.expr, function: ast.FunctionDef) -> Iterator[str]:
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value
    elif isinstance(argument, ast.IfExp):
        yield from words(argument.body, function)
        yield from words(argument.orelse, function)
    elif isinstance(argument, ast.Name):
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and argument.id in [t.id for t in node.targets if isinstance(t, ast.Name)]:
                yield from words(node.value, function)
