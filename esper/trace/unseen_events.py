"""Finds the severe events that the log has and the spans on disk do not have.

A span that never ended has no events on disk, and OpenTelemetry keeps only the newest 128 events of a span. The log has
every severe event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from esper.trace.event_log import SevereEvent
from esper.trace.otlp_json import Event, Span
from esper.trace.since import unix_ns

SEVERITY = "esper.severity"
"""Attribute of a severe event on a span."""


def unseen(spans: Iterable[Span], log: Iterable[SevereEvent]) -> list[SevereEvent]:
    """Return the severe events of a trace that none of its spans on disk has, the newest last.

    Args:
        spans: The spans of one trace.
        log: Severe events, the newest last, of any traces.
    """
    every = list(spans)
    traces = {span.trace_id for span in every}
    mine = [event for event in log if event.trace_id in traces]
    on_spans = Counter((span.span_id, event.name) for span in every for event in span.events)
    found: list[SevereEvent] = []
    for event in reversed(mine):  # a span keeps its newest events
        key = (event.span_id, event.name)
        if on_spans[key]:
            on_spans[key] -= 1
        else:
            found.append(event)
    return found[::-1]


def completed(spans: Sequence[Span], missing: Iterable[SevereEvent]) -> list[Span]:
    """Return the spans with those of the missing severe events that belong to them, in the order of their times."""
    by_span: dict[str, list[Event]] = {}
    for told in missing:
        event = Event(unix_ns(told.time), told.name, {**told.fields, SEVERITY: told.severity})
        by_span.setdefault(told.span_id, []).append(event)
    return [_with(span, by_span[span.span_id]) if span.span_id in by_span else span for span in spans]


def _with(span: Span, more: Sequence[Event]) -> Span:
    events = sorted((*span.events, *more), key=lambda event: event.time_ns)
    return span._replace(events=tuple(events), dropped_events=max(0, span.dropped_events - len(more)))
