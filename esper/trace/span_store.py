"""Reads the spans of a run: summaries of all traces, the spans of some traces, or every span in turn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from esper.errors import ConfigError, SpanUnreadable
from esper.trace.otlp_json import LineDecoder, Span
from esper.trace.span_files import LIMITS, TORN, Limits, Skipped, lines_of, telemetry_of

PREFIX_OF_ID = re.compile(r"[0-9a-fA-F]{1,32}")
TOO_MANY = "spans after the limit of one reading"


def every_span(
    folder: Path, skipped: Skipped, limits: Limits = LIMITS, wanted: Callable[[bytes], bool] = lambda _: True
) -> Iterator[Span]:
    """Yield every span of a telemetry folder. A started span may be yielded again when it ended.

    Args:
        wanted: Returns whether a line is decoded. Other lines are ignored.
    """
    decoder, left = LineDecoder(), limits.spans
    for name, line in lines_of(folder, skipped, limits):
        if not wanted(line):
            continue
        try:
            found = decoder.spans_of(line)
        except SpanUnreadable as reason:
            skipped.add(name, str(reason) if line.endswith(b"\n") else TORN)
            continue
        if len(found) > left:
            skipped.add(name, TOO_MANY)
            return
        left -= len(found)
        yield from found


class Brief(NamedTuple):
    """A span without its attributes and events."""

    name: str
    parent_id: str
    start_ns: int
    end_ns: int | None
    failed: bool
    fence: int | None
    """None: the span has no fence."""


@dataclass
class TraceSummary:
    """One trace, as `esper trace list` shows it."""

    trace_id: str
    spans: dict[str, Brief] = field(default_factory=dict)
    """By span id."""

    def add(self, span: Span) -> None:
        """Add a span. A started span is replaced when it ended."""
        known = self.spans.get(span.span_id)
        if known is None or (known.end_ns is None and span.end_ns is not None):
            fence = span.attributes.get("fence")
            whole = fence if isinstance(fence, int) and not isinstance(fence, bool) else None
            self.spans[span.span_id] = Brief(span.name, span.parent_id, span.start_ns, span.end_ns, span.failed, whole)

    @property
    def start_ns(self) -> int:
        """Unix time of the first start."""
        return min(one.start_ns for one in self.spans.values())

    @property
    def duration_ns(self) -> int:
        """Time from the first start to the last time that is known."""
        last = max(one.start_ns if one.end_ns is None else one.end_ns for one in self.spans.values())
        return max(0, last - self.start_ns)

    @property
    def errors(self) -> int:
        """Number of spans that failed."""
        return sum(one.failed for one in self.spans.values())

    @property
    def never_ended(self) -> int:
        """Number of spans of which only the start is on disk."""
        return sum(one.end_ns is None for one in self.spans.values())

    @property
    def root(self) -> str:
        """Name of the root; of the first span without a parent on disk, if several spans are roots."""
        return self._root.name

    @property
    def fence(self) -> int | None:
        """Fence of the root. None: it has none."""
        return self._root.fence

    @property
    def _root(self) -> Brief:
        roots = [one for one in self.spans.values() if one.parent_id not in self.spans]
        return min(roots or self.spans.values(), key=lambda one: (one.parent_id != "", one.start_ns))


@dataclass
class Summaries:
    """The traces of a run, the oldest first, and the parts that were not read."""

    traces: list[TraceSummary]
    skipped: Skipped


def summaries(run_dir: Path, limits: Limits = LIMITS) -> Summaries:
    """Read the summaries of all traces of a run.

    Raises:
        RunDirectoryError: the directory has no readable telemetry folder.
    """
    skipped, traces = Skipped(), dict[str, TraceSummary]()
    for span in every_span(telemetry_of(run_dir), skipped, limits):
        trace = traces.get(span.trace_id)
        if trace is None:
            trace = traces[span.trace_id] = TraceSummary(span.trace_id)
        trace.add(span)
    return Summaries(sorted(traces.values(), key=lambda one: one.start_ns), skipped)


@dataclass
class SpanSet:
    """The spans of some traces with all details, and the parts that were not read."""

    spans: dict[tuple[str, str], Span] = field(default_factory=dict)
    """By trace id and span id."""
    skipped: Skipped = field(default_factory=Skipped)

    def add(self, span: Span) -> None:
        """Add a span. A started span is replaced when it ended."""
        key = (span.trace_id, span.span_id)
        known = self.spans.get(key)
        if known is None or (known.end_ns is None and span.end_ns is not None):
            self.spans[key] = span

    def by_trace(self) -> dict[str, list[Span]]:
        """Return the spans of each trace, in the order of their starts."""
        traces: dict[str, list[Span]] = {}
        for span in sorted(self.spans.values(), key=lambda one: one.start_ns):
            traces.setdefault(span.trace_id, []).append(span)
        return traces


def spans_with(run_dir: Path, trace_id: str = "", limits: Limits = LIMITS) -> SpanSet:
    """Read the spans of the traces whose ids begin with `trace_id`. "": all traces.

    Raises:
        RunDirectoryError: the directory has no readable telemetry folder.
        ConfigError: `trace_id` is not the beginning of an id.
    """
    if trace_id and not PREFIX_OF_ID.fullmatch(trace_id):
        raise ConfigError("ID", trace_id, "a trace id has 32 hexadecimal digits; give the id or its first digits")
    found, beginning = SpanSet(), trace_id.lower()
    as_bytes = beginning.encode()
    for span in every_span(telemetry_of(run_dir), found.skipped, limits, lambda line: as_bytes in line.lower()):
        if span.trace_id.startswith(beginning):
            if len(found.spans) >= limits.detailed_spans and (span.trace_id, span.span_id) not in found.spans:
                found.skipped.add("the folder", TOO_MANY)
                break
            found.add(span)
    return found


def one_trace(run_dir: Path, trace_id: str, limits: Limits = LIMITS) -> tuple[list[Span], Skipped]:
    """Read the spans of one trace, in the order of their starts.

    Args:
        trace_id: The id, or its first digits if no other trace id has the same first digits.

    Raises:
        RunDirectoryError: the directory has no readable telemetry folder.
        ConfigError: no trace or several traces have such an id.
    """
    found = spans_with(run_dir, trace_id, limits)
    traces = found.by_trace()
    if len(traces) == 1:
        return next(iter(traces.values())), found.skipped
    if traces:
        several = ", ".join(sorted(traces)[:3])
        raise ConfigError("ID", trace_id, f"{len(traces)} traces begin so: {several}; give more digits")
    unread = f" ({found.skipped.sentences()[0]})" if found.skipped.counts else ""
    raise ConfigError("ID", trace_id, f"no trace on disk has this id; `esper trace list` shows the ids{unread}")
