"""Every declared event and counter is emitted somewhere in the source, and every emitted one is declared. By `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from esper.telemetry import events, metrics

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for room in ("esper", "actors", "drills") for path in sorted((ROOT / room).rglob("*.py"))]
EVENTS, COUNTERS = ("severe",), ("count", "add")


def emitted(calls: tuple[str, ...]) -> set[str]:
    """The first arguments of all calls of these functions: words, or variables that are given words."""
    found: set[str] = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if called(call) in calls and call.args:
                    found |= set(words(call.args[0], function))
    return found


def called(call: ast.Call) -> str | None:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return None


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


def test_every_severe_event_that_is_declared_is_emitted_and_the_reverse() -> None:
    assert emitted(EVENTS) == events.NAMES


def test_every_counter_that_is_declared_is_counted_and_the_reverse() -> None:
    assert {name for name in emitted(COUNTERS) if name.startswith("esper.")} == metrics.NAMES
