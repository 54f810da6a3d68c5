"""Writes one trace in the formats of other tools: Perfetto (Chrome's trace events), and OTLP JSON for Jaeger.

Chrome's format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. A role is a process of
that format. Overlapping spans of one role are in several threads, because slices of a thread have to be nested.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from esper.trace.lanes import lanes_of
from esper.trace.otlp_json import Span, traces_data
from esper.trace.since import iso
from esper.trace.span_tree import Node, walk

NEVER_ENDED = "esper.never_ended"
"""Attribute in an OTLP export of a span that never ended. Its end in the export is the last time that is known of it,
because other tools need an end."""


def as_otlp(roots: Sequence[Node]) -> dict[str, Any]:
    """Return a trace as one TracesData object."""
    return traces_data([_ended(node) for node in walk(roots)])


def _ended(node: Node) -> Span:
    """Return a span with an end that is not before its start, as every reader of OTLP expects."""
    span = node.span
    if span.end_ns is None:
        return span._replace(end_ns=node.end_ns, attributes={**span.attributes, NEVER_ENDED: True})
    return span if span.end_ns >= span.start_ns else span._replace(end_ns=node.end_ns)


def as_perfetto(roots: Sequence[Node]) -> dict[str, Any]:
    """Return a trace as Chrome's trace events. Times are microseconds since the first start of the trace."""
    nodes = sorted(walk(roots), key=lambda node: (node.span.start_ns, -node.end_ns))
    first_ns = nodes[0].span.start_ns
    roles = {role: number for number, role in enumerate(dict.fromkeys(node.span.role for node in nodes), start=1)}
    lanes = lanes_of(nodes)
    events = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": role or "(no role)"}}
        for role, number in roles.items()
    ]
    for node in nodes:
        at = {"pid": roles[node.span.role], "tid": lanes[id(node)]}
        events += _slice(node, at, first_ns)
        if node.parent is not None and node.parent.span.role != node.span.role:
            parent = {"pid": roles[node.parent.span.role], "tid": lanes[id(node.parent)]}
            events += _flow(node, parent, at, first_ns)
    told = {"trace_id": nodes[0].span.trace_id, "start": iso(first_ns)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": told}


def _slice(node: Node, at: dict[str, int], first_ns: int) -> Iterator[dict[str, Any]]:
    span = node.span
    told = {"cat": "failed" if span.failed else "span", "name": span.name or "(no name)"}
    arguments = _plain({**span.attributes, "span_id": span.span_id})
    start_us = (span.start_ns - first_ns) / 1000
    if span.end_ns is None:  # Perfetto shows a beginning without an end as a slice that did not end
        yield {"ph": "B", **told, **at, "ts": start_us, "args": {**arguments, NEVER_ENDED: True}}
    else:
        yield {"ph": "X", **told, **at, "ts": start_us, "dur": (node.end_ns - span.start_ns) / 1000, "args": arguments}
    for event in span.events:
        when_us = max(0, event.time_ns - first_ns) / 1000
        name = event.name or "(no name)"
        yield {"ph": "i", "s": "t", "cat": "event", "name": name, **at, "ts": when_us, "args": _plain(event.attributes)}


def _flow(node: Node, parent: dict[str, int], at: dict[str, int], first_ns: int) -> Iterator[dict[str, Any]]:
    assert node.parent is not None, "a flow leads from a parent"
    told = {"cat": "call", "name": "call", "id": node.span.span_id}
    start_ns, above = node.span.start_ns, node.parent
    sent_ns = min(max(start_ns, above.span.start_ns), above.end_ns)  # the arrow has to begin in the parent's slice
    got_ns = min(max(start_ns, sent_ns), node.end_ns)  # and to end in this slice, which may begin before the parent's
    if got_ns >= sent_ns:  # false if this slice ended before the parent's began: an arrow cannot lead backwards
        yield {"ph": "s", **told, **parent, "ts": (sent_ns - first_ns) / 1000}
        yield {"ph": "f", "bp": "e", **told, **at, "ts": (got_ns - first_ns) / 1000}


def _plain(value: Any) -> Any:
    """Return attributes as JSON values."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if hasattr(value, "items") else value
