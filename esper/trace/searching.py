"""Finds a word in the spans of a run: in names, attributes, errors and events; and in the log of severe events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.trace.event_log import severe_events
from esper.trace.failures import EXCEPTION, error_of
from esper.trace.otlp_json import Span
from esper.trace.since import unix_ns
from esper.trace.span_files import LIMITS, Limits, Skipped, telemetry_of
from esper.trace.span_store import every_span

MOST_MATCHES = 10_000
NO_SPAN = "severe-events.jsonl"
"""Stands for the name of the span in a match that only the log of severe events has."""


@dataclass(frozen=True)
class Match:
    """A text with the word, and the span that has it."""

    trace_id: str
    span_id: str
    role: str
    span: str
    """Name of the span."""
    start_ns: int
    where: str
    """name, status, the key of an attribute, or the name of an event and the key of its attribute."""
    text: str


def grep(run_dir: Path, word: str, limits: Limits = LIMITS) -> tuple[list[Match], Skipped]:
    """Return the texts that have the word, in upper or lower case, in the order of the starts of their spans.

    Of an error that passed through several spans, only the texts of the span in which it began are returned. If its
    message has the word, its status and its stacktrace, which repeat the message, are left out.

    Raises:
        RunDirectoryError: the directory has no readable telemetry folder.
    """
    skipped, found = Skipped(), dict[tuple[str, str], tuple[Span, list[Match]]]()
    wanted = word.casefold()
    for span in every_span(telemetry_of(run_dir), skipped, limits):
        matches = _once([_match(span, *told) for told in _texts(span) if wanted in "=".join(told).casefold()])
        if matches:  # the end of a span has all that its start line has
            found[span.trace_id, span.span_id] = span, matches
        if len(found) >= MOST_MATCHES:
            skipped.add("the folder", "matches after the limit of one search")
            break
    below = {(one.trace_id, one.parent_id, error_of(one)) for one, _ in found.values() if one.failed}
    every = [
        match
        for span, matches in found.values()
        for match in matches
        if not (_of_an_error(match) and (span.trace_id, span.span_id, error_of(span)) in below)
    ]
    every += _in_log(run_dir, wanted, every, skipped, limits)
    return sorted(every, key=lambda match: match.start_ns), skipped


STATUS, MESSAGE, STACK = "status", f"{EXCEPTION}.exception.message", f"{EXCEPTION}.exception.stacktrace"


def _once(matches: list[Match]) -> list[Match]:
    """Return the matches of a span without those that repeat the message of its error."""
    repeated = (STATUS, STACK) if any(match.where == MESSAGE for match in matches) else ()
    return [match for match in matches if match.where not in repeated]


def _of_an_error(match: Match) -> bool:
    return match.where == STATUS or match.where.startswith(f"{EXCEPTION}.")


def _in_log(run_dir: Path, wanted: str, known: Iterable[Match], skipped: Skipped, limits: Limits) -> Iterator[Match]:
    """Yield the texts of severe events in the log that no span on disk has."""
    seen = {(match.trace_id, match.span_id, match.where, match.text) for match in known}
    for event in severe_events(run_dir, skipped, limits):
        for where, text in (("event", event.name), *_flat(f"{event.name}.", event.fields)):
            if wanted in f"{where}={text}".casefold() and (event.trace_id, event.span_id, where, text) not in seen:
                yield Match(event.trace_id, event.span_id, event.role, NO_SPAN, unix_ns(event.time), where, text)


def _texts(span: Span) -> Iterator[tuple[str, str]]:
    """Yield each text of a span, after the word for its place."""
    yield "name", span.name
    if span.message:
        yield STATUS, span.message
    yield from _flat("", span.attributes)
    for event in span.events:
        yield "event", event.name
        yield from _flat(f"{event.name}.", event.attributes)


def _flat(prefix: str, attributes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in attributes.items():
        yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)


def _match(span: Span, where: str, text: str) -> Match:
    return Match(span.trace_id, span.span_id, span.role, span.name, span.start_ns, where, text)
