"""Checks that a path of spans exists in the traces of a run, for `esper trace assert`, tests and drills."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esper.errors import ConfigError
from esper.ground.suggest import existing_names, listed
from esper.trace.event_log import severe_events
from esper.trace.failures import error_class
from esper.trace.path_expression import Step, parse
from esper.trace.span_files import LIMITS, Limits, Skipped
from esper.trace.span_store import spans_with
from esper.trace.span_tree import Node, trees, walk


@dataclass(frozen=True)
class Found:
    """The answer of `find`."""

    ends: Mapping[str, tuple[tuple[Node, ...], ...]]
    """Trace id -> for each path, the spans at its end. Only traces with every path, as often as asked."""
    reason: str
    """What was found instead. "": the paths exist."""
    skipped: Skipped
    """The parts of the folder that were not read."""

    def __bool__(self) -> bool:
        return not self.reason

    @property
    def trace_ids(self) -> list[str]:
        """The traces with every path."""
        return list(self.ends)


def find(
    run_dir: Path,
    *expressions: str,
    trace_id: str = "",
    role: str | None = None,
    error: str | None = None,
    event: str | None = None,
    count: int | None = None,
    limits: Limits = LIMITS,
) -> Found:
    """Find traces of a run in which every path exists. `if not found: ...found.reason` tells what was found instead.

    Args:
        expressions: Paths; see `esper.trace.path_expression`.
        trace_id: Look only in the traces whose ids begin so.
        role, error, event: Further conditions on the span at the end of each path: its role, the class of its error,
            the name of one of its events.
        count: Number of spans at the end of each path in a trace. None: at least one. With 0, no trace may have one.

    Raises:
        ConfigError: an expression is not a path, or no trace has such an id.
        RunDirectoryError: the directory has no readable telemetry folder.
    """
    paths = [_with(parse(one), role, error, event) for one in expressions]
    read = spans_with(run_dir, trace_id, limits)
    by_trace = {one: trees(spans) for one, spans in read.by_trace().items()}
    if trace_id and not by_trace:
        raise ConfigError("--trace", trace_id, "no trace on disk has this id; `esper trace list` shows the ids")
    logged = {(one.trace_id, one.span_id, one.name) for one in severe_events(run_dir, read.skipped)}
    matched = {one: tuple(_ends(roots, path, logged) for path in paths) for one, roots in by_trace.items()}
    if count == 0:
        wrong = sum(len(ends) for found in matched.values() for ends in found)
        return Found({}, f"{wrong} spans are at the end of such a path" if wrong else "", read.skipped)
    ends = {
        one: found for one, found in matched.items() if all(len(each) == (count or len(each)) > 0 for each in found)
    }
    reason = "" if ends else _reason(by_trace, paths, matched, logged, count)
    return Found(ends, reason, read.skipped)


def _with(steps: tuple[Step, ...], role: str | None, error: str | None, event: str | None) -> tuple[Step, ...]:
    last = steps[-1]
    last = replace(last, attributes=(*last.attributes, ("role", role))) if role is not None else last
    last = replace(last, error=error) if error is not None else last
    last = replace(last, events=(*last.events, event)) if event is not None else last
    return (*steps[:-1], last)


Logged = set[tuple[str, str, str]]
"""Trace id, span id and name of each severe event of the log."""


def _ends(roots: Sequence[Node], path: Sequence[Step], logged: Logged) -> tuple[Node, ...]:
    """Return the spans of one trace that are at the end of the path, each once."""
    near: Iterable[Node] = walk(roots)
    for place, step in enumerate(path):
        near = [node for node in (_below(near, step.below) if place else near) if _meets(node, step, logged)]
    return tuple(near)


def _below(nodes: Iterable[Node], everything: bool) -> Iterable[Node]:
    """Yield the children of some spans, or every span below them, each once."""
    seen: set[int] = set()
    todo = [child for node in nodes for child in node.children]
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            todo += node.children if everything else ()
            yield node


def _meets(node: Node, step: Step, logged: Logged) -> bool:
    span = node.span
    if step.name not in ("*", span.name):
        return False
    if step.error is not None and not (span.failed and step.error in ("", error_class(span))):
        return False
    names = {event.name for event in span.events}
    if not all(event in names or (span.trace_id, span.span_id, event) in logged for event in step.events):
        return False
    return all(_attribute(node, key) == value for key, value in step.attributes)


def _attribute(node: Node, key: str) -> str | None:
    span = node.span
    known: dict[str, Any] = {
        "role": span.role,
        "ended": span.end_ns is not None,
        "status": "error" if span.failed else "ok",
    }
    told = known | dict(span.attributes)
    if key not in told:
        return None
    return told[key] if isinstance(told[key], str) else json.dumps(told[key], default=repr)


def _reason(
    by_trace: Mapping[str, Sequence[Node]],
    paths: Sequence[Sequence[Step]],
    matched: Mapping[str, tuple[tuple[Node, ...], ...]],
    logged: Logged,
    count: int | None,
) -> str:
    """Describe what was found instead of the first path that no trace has."""
    if not by_trace:
        return "no span was found"
    for number, path in enumerate(paths):
        counts = [len(found[number]) for found in matched.values() if found[number]]
        if not counts:
            return _missing(by_trace, path, logged)
        if count is not None and count not in counts:
            told = listed(f"{size} spans in {times} traces" for size, times in sorted(Counter(counts).items()))
            return f"{_text(path)}: {told}, and {count} are required"
    return "every path exists, but not all in one trace"


def _missing(by_trace: Mapping[str, Sequence[Node]], path: Sequence[Step], logged: Logged) -> str:
    for length in range(1, len(path) + 1):
        if any(_ends(roots, path[:length], logged) for roots in by_trace.values()):
            continue
        step = path[length - 1]
        if length == 1:
            around = [node for roots in by_trace.values() for node in walk(roots)]
            where = "no span"
        else:
            before = [node for roots in by_trace.values() for node in _ends(roots, path[: length - 1], logged)]
            around = list(_below(before, step.below))
            place = "below" if step.below else "in"
            where = f"{len(before)} spans are at {_text(path[: length - 1])}; {place} them no span"
        alike = [node for node in around if step.name in ("*", node.span.name)]
        if alike:
            return f"{where} meets {step}; of this name are: {listed(sorted({_described(node) for node in alike}))}"
        names = sorted({node.span.name for node in around})
        return f"{where} has the name {step.name}; {existing_names(step.name, names)}"
    raise AssertionError("a part of the path is missing")


def _described(node: Node) -> str:
    events = "".join(f"@{name}" for name in sorted({event.name for event in node.span.events} - {"exception"}))
    error = f"!{error_class(node.span)}" if node.span.failed else ""
    return f"{node.span.name}[role={node.span.role}]{error}{events}"


def _text(path: Sequence[Step]) -> str:
    return "".join(f" {'>>' if step.below else '>'} {step}" if place else str(step) for place, step in enumerate(path))
