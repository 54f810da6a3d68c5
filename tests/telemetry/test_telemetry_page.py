"""docs/telemetry.md lists every span and severe event: compared with the code and with runs, both ways."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from emitting import SOURCES, called, words
from span_files import ended

from esper.flow.result import Result
from esper.telemetry import events, metric_table
from esper.telemetry.events import LOG

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "telemetry.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "await tamiyo",
    "actor start",
    "await actor",
    "actor restart",
    "actor lost",
    "esper recover",
    "rollback fast",
    "rollback full",
    "emergency halt",
    "send esper.emergency",
    "process esper.emergency",
}
"""Spans that no undisturbed run in one process has: of actors, deaths, rollbacks and signals. Other tests see them."""
NOT_ATTRIBUTES = {"role", "links_to", "new_trace", None}


class SpanRow(NamedTuple):
    roles: set[str]
    parents: set[str]
    attributes: set[str]


def rows(section: str) -> dict[str, list[str]]:
    """Name in the first column of a section's table -> the other columns."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {first.strip("`"): rest for first, *rest in cells}


def documented() -> dict[str, SpanRow]:
    return {
        name: SpanRow(set(role.split(", ")), set(re.findall(r"`([^`]+)`", parent)), set(attributes.split(", ")) - {""})
        for name, (role, parent, attributes, _when) in rows("Spans").items()
    }


def span_calls() -> Iterator[tuple[str, set[str], set[str]]]:
    """(name, constant roles, attributes) of every call of `span` in the source. `**` is left to the runs."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if called(call) == "span" and isinstance(call.func, ast.Name) and call.args:
                    given = {word.arg: word.value for word in call.keywords}
                    role = given.get("role")
                    for name in words(call.args[0], function):
                        roles = {role.value} if isinstance(role, ast.Constant) else set()
                        yield name, roles, {word for word in given if word not in NOT_ATTRIBUTES}


def event_calls() -> Iterator[tuple[str, set[str], set[str]]]:
    """(name, levels, literal fields) of every call that says a severe event."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                place = {"severe": 0, "reported": 1}.get(called(call))
                if place is not None and len(call.args) > place + 1:
                    levels = set(re.findall(r"Severity\.(\w+)", sources_of(call.args[place + 1], function)))
                    for name in words(call.args[place], function):
                        yield name, levels, {word.arg for word in call.keywords if word.arg}


def sources_of(value: ast.expr, function: ast.AST) -> str:
    """The source of a value; of a variable, what it is given in the function."""
    if not isinstance(value, ast.Name):
        return ast.unparse(value)
    given = [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and value.id in [ast.unparse(target) for target in node.targets]
    ]
    return " ".join(map(ast.unparse, given))


def test_every_span_of_the_code_is_on_the_page_with_its_roles_and_attributes_and_the_reverse() -> None:
    page, calls = documented(), list(span_calls())
    assert {name for name, _, _ in calls} == page.keys()
    for name, row in page.items():
        roles = set().union(*(roles for other, roles, _ in calls if other == name))
        attributes = set().union(*(attributes for other, _, attributes in calls if other == name))
        assert (name, roles - row.roles, attributes - row.attributes) == (name, set(), set())
    assert set().union(*(row.parents for row in page.values())) <= page.keys()


def test_every_severe_event_is_on_the_page_with_its_levels_and_fields_and_the_reverse() -> None:
    page, calls = rows("Severe events"), list(event_calls())
    assert page.keys() == events.NAMES == {name for name, _, _ in calls}
    for name, (levels, fields, counter) in page.items():
        said = set().union(*(levels for other, levels, _ in calls if other == name))
        assert (name, set(levels.split(", "))) == (name, said)
        literal = set().union(*(literal for other, _, literal in calls if other == name))
        assert (name, literal - set(re.findall(r"\w+", fields))) == (name, set())
        assert counter.strip("`") in {"", *metric_table.COUNTERS}


def test_what_runs_write_is_on_the_page_and_what_the_page_has_is_seen(undisturbed: Result, drained_twice: Path) -> None:
    page, seen = documented(), set()
    for folder in (Path(undisturbed.run_dir) / "telemetry", drained_twice / "telemetry"):
        spans = {span["spanId"]: span for span in ended(folder)}
        for span in spans.values():
            row, told = page[span["name"]], {pair["key"]: pair["value"] for pair in span["attributes"]}
            assert told.pop("esper.role")["stringValue"] in row.roles, span["name"]
            assert (span["name"], told.keys() - row.attributes - {"error.type"}) == (span["name"], set())
            parent = spans[span["parentSpanId"]]["name"] if span["parentSpanId"] in spans else ""
            assert (span["name"], {parent} - row.parents - {""}) == (span["name"], set())
            seen.add(span["name"])
        for line in (folder / LOG).read_text().splitlines() if (folder / LOG).exists() else ():
            event = json.loads(line)
            levels, fields, _ = rows("Severe events")[event["name"]]
            assert event["severity"] in levels
            assert event["name"] == "gate_failure" or event["fields"].keys() <= set(re.findall(r"\w+", fields))
    assert seen == page.keys() - ELSEWHERE
