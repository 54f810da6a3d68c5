"""The text of one trace: a tree with roles, durations, self times, errors and severe events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

from esper.trace.event_log import SevereEvent
from esper.trace.failures import EXCEPTION, Failure, failure_of
from esper.trace.folding import Row, rows
from esper.trace.otlp_json import Event, Span
from esper.trace.since import length
from esper.trace.span_tree import Node
from esper.trace.unseen_events import SEVERITY

ROLE, DURATION, SELF = 10, 9, 9
"""Widths of the columns, in characters."""
WIDEST = 110
"""Largest width of the tree, in columns, so that the figures are near their names."""
DEEPEST = 12
"""Largest depth that is shown by indentation. Below it, the depth is a number."""
_WORDS = re.compile(r"(\s*)(\S+)")
MUCH_NS = 1_000_000
"""Smallest time by which a span below must end later than its parent to be told. It is more than the clocks of two
processes of a machine differ."""
SENTENCE = 20
"""Smallest length of a text that is not repeated if the message has it. A shorter one may be there by chance."""
QUIET = frozenset({"esper.role", "error.type"})
"""Attributes that the tree shows in another way."""


def tree(
    roots: Sequence[Node],
    strays: Sequence[SevereEvent],
    width: int,
    *,
    fold: bool = True,
    critical: bool = False,
    attributes: bool = False,
) -> Iterator[Text]:
    """Yield the lines of a trace.

    Args:
        strays: Severe events of the trace whose spans are not on disk.
        width: Columns of the terminal.
        critical: Show only the critical path.
        attributes: Show the attributes of each span.
    """
    width = max(40, min(width, WIDEST))
    yield _columns("role", Text("span (* critical path)"), "time", "self", width, "dim")
    open_below: list[bool] = []
    for row in rows(roots, fold=fold, critical_only=critical):
        node = row.node
        del open_below[node.depth :]
        yield from _span(row, "".join("│ " if one else "  " for one in open_below[1:]), width)
        if node.depth <= DEEPEST:  # below it no branches are drawn
            open_below.append(not row.last)
        indent = _indent(node)
        if row.count > 1:
            continue
        if attributes:
            yield from _fields(node, indent, {k: v for k, v in node.span.attributes.items() if k not in QUIET}, width)
        for event in node.span.events:
            if event.name != EXCEPTION:
                yield from _event(node, indent, event, width)
        for lost in _dropped(node.span):
            yield from _wrapped(node.span.role, indent, lost, width, "yellow")
        for link in node.span.links:
            yield from _wrapped(node.span.role, indent, f"link to trace {link.trace_id} span {link.span_id}", width)
        if (failure := failure_of(node)) is not None:
            yield from _failure(node, indent, failure, width)
    for told in strays if not critical else ():
        yield from _severe(told, width)


def _indent(node: Node) -> str:
    return "  " * min(node.depth + 1, DEEPEST + 1)


def _span(row: Row, above: str, width: int) -> Iterator[Text]:
    node = row.node
    label = Text(_branch(node, row, above))
    label.append(
        in_one_line(titled(node.span.name, node.span.attributes) if row.count == 1 else node.span.name) or "(no name)",
        style="red" if node.span.failed else "bold" if row.critical else "",
    )
    if row.count > 1:
        below = f", {row.below:,} spans below" if row.below else ""
        longest = f", longest {length(row.longest_ns)}" if row.longest_ns * row.count > 2 * row.total_ns else ""
        label.append(f"  x{row.count:,}{longest}{below}", style="dim")
    if row.critical:
        label.append(" *", style="bold")
    if node.orphan:
        label.append("  (its parent is not on disk)", style="yellow")
    if node.in_cycle:
        label.append("  (its own ancestor: wrong parents)", style="yellow")
    ended = node.span.end_ns
    if ended is None:
        label.append("  never ended", style="yellow")
        yield from _fitting(node.span.role, label, "", "", width)
        return
    if ended < node.span.start_ns:
        label.append("  (ends before it starts)", style="yellow")
    elif row.count == 1 and node.last_ns - ended > max(MUCH_NS, (node.duration_ns or 0) // 100):
        label.append("  (a child outlives it)", style="dim")
    yield from _fitting(node.span.role, label, length(row.total_ns), length(row.self_ns), width)


def _branch(node: Node, row: Row, above: str) -> str:
    if not node.depth:
        return ""
    if node.depth > DEEPEST:
        return f"{'  ' * DEEPEST}+{node.depth - DEEPEST} "
    return above + ("└ " if row.last else "├ ")


def _fitting(role: str, label: Text, duration: str, own: str, width: int) -> Iterator[Text]:
    """Yield one line, or several if the name is too long for one."""
    room = width - ROLE - DURATION - SELF - 3
    if label.cell_len > room:
        ends = list(accumulate(map(len, chop_cells(label.plain, width - ROLE - 1))))
        for part in label.divide(ends[:-1]):
            yield Text(f"{_short(role)} ").append_text(part)
        label = Text("")
    yield _columns(role, label, duration, own, width)


def _columns(role: str, label: Text, duration: str, own: str, width: int, style: str = "") -> Text:
    room = width - ROLE - DURATION - SELF - 3
    line = Text(f"{_short(role)} ", style=style).append_text(label)
    line.append(" " * max(0, room - label.cell_len))
    return line.append(f" {duration:>{DURATION}} {own:>{SELF}}")


def _short(role: str) -> str:
    shown = in_one_line(role) or "-"
    return set_cell_size(shown if cell_len(shown) <= ROLE else set_cell_size(shown, ROLE - 2) + "..", ROLE)


def _dropped(span: Span) -> Iterator[str]:
    """Yield a text for each kind of parts that OpenTelemetry has dropped."""
    counts = {"attributes": span.dropped_attributes, "events": span.dropped_events, "links": span.dropped_links}
    for what, count in counts.items():
        if count:
            yield f"{count:,} more {what} are not on disk: the span had more than OpenTelemetry's limit"


def _event(node: Node, indent: str, event: Event, width: int) -> Iterator[Text]:
    fields = {key: value for key, value in event.attributes.items() if key != SEVERITY}
    severity = str(event.attributes[SEVERITY]) if SEVERITY in event.attributes else ""
    at = length(max(0, event.time_ns - node.span.start_ns))
    told = f"at {at}: {event.name} {severity}".rstrip()
    yield from _wrapped(node.span.role, indent, f"{told}{_listed(fields)}", width, severity_style(severity))


def _severe(event: SevereEvent, width: int) -> Iterator[Text]:
    told = f"its span is not on disk: {event.time:%H:%M:%S} {event.name} {event.severity}{_listed(event.fields)}"
    yield from _wrapped(event.role, "", told, width, severity_style(event.severity))


def severity_style(severity: str) -> str:
    """Return the style of rich for an event of this severity."""
    if not severity:
        return ""
    return "yellow" if severity == "WARNING" else "red"


def _failure(node: Node, indent: str, failure: Failure, width: int) -> Iterator[Text]:
    if not failure.began_here:
        yield from _wrapped(node.span.role, indent, f"{failure.error or 'error'}, from below", width, "red")
        return
    told = ": ".join(part for part in (failure.error or "error", " ".join(failure.message.split())) if part)
    yield from _wrapped(node.span.role, indent, f"{told}{_listed(_new(failure, node.span))}", width, "bold red")
    first = failure.users_place or failure.place
    for place in (first, failure.place) if first != failure.place else (first,):
        before = "at" if place == first else "raised in"
        if place:
            yield from _wrapped(node.span.role, indent, f"{before} {place}", width, "red")
    for note in failure.notes:
        yield from _wrapped(node.span.role, indent, note, width, "red")
    for number, line in enumerate(failure.cause):
        yield from _wrapped(node.span.role, indent, line if number else f"caused by {line}", width, "red")


def _new(failure: Failure, span: Span) -> dict[str, Any]:
    """Return the fields of an error that say more than its message and the severe events of its span do."""
    told = {
        key: json.dumps(value, default=repr)
        for event in span.events
        if event.name != EXCEPTION
        for key, value in event.attributes.items()
    }
    return {
        key: value
        for key, value in failure.fields.items()
        if value not in ("", None)
        and told.get(key) != json.dumps(value, default=repr)
        and not (isinstance(value, str) and len(value) >= SENTENCE and value in failure.message)
    }


def titled(name: str, attributes: Mapping[str, Any]) -> str:
    """Return the name of a span with its fence, or else its step: "esper round 4", "checkpoint restore, fence 3"."""
    for word in ("fence", "step"):
        number = attributes.get(word)
        if isinstance(number, int) and not isinstance(number, bool):
            own = name.endswith((" round", " step"))
            return f"{name} {number}" if own else f"{name}, {word} {number}"
    return name


def _fields(node: Node, indent: str, fields: Mapping[str, Any], width: int) -> Iterator[Text]:
    for key, value in fields.items():
        yield from _wrapped(node.span.role, indent, f"{key}={value_text(value)}", width, "dim")


def _listed(fields: Mapping[str, Any]) -> str:
    return "".join(f"  {key}={value_text(value)}" for key, value in fields.items())


def value_text(value: Any) -> str:
    """Return the value of an attribute in one line."""
    if isinstance(value, str):
        return value if value and value.isprintable() and " " not in value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return json.dumps(value, ensure_ascii=False, default=repr)


def in_one_line(text: str) -> str:
    """Return a text with line feeds and other control characters written as escapes."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _wrapped(role: str, indent: str, text: str, width: int, style: str = "") -> Iterator[Text]:
    room = max(20, width - ROLE - 1 - len(indent))
    for part in _lines(in_one_line(text), room):
        yield Text(f"{_short(role)} {indent}").append(part, style=style)


def _lines(text: str, room: int) -> list[str]:
    """Break a text at spaces into lines of at most `room` columns. A wide character has two columns.

    A path is not broken, so that it can be copied; if it is longer than a line, the line is longer.
    """
    lines, used = [""], 0
    for space, word in _WORDS.findall(text):
        for place, part in enumerate([word] if "/" in word else chop_cells(word, room)):
            before = "" if place else space
            if used + len(before) + (size := cell_len(part)) > room:
                lines.append(part)
                used = size
            else:
                lines[-1] += before + part
                used += len(before) + size
    return lines if lines[0] else lines[1:] or [""]
