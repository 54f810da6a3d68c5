"""Writes spans as OTLP-JSON lines to one file.

Each ended span has a line. A root span, and a span whose parent is in another process, have an additional line from
their start: its `endTimeUnixNano` is "0". The line of the end has the same ids and replaces it. If there is only the
line of the start, the span never ended: for example, its process was killed.

A lost span is counted and logged, and the run continues. Format:
https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/ (each line is one TracesData, here with one
ResourceSpans) and https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding (ids in hex, 64-bit integers as
text, enums as numbers).
"""

from __future__ import annotations

import base64
import errno
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, format_span_id, format_trace_id
from opentelemetry.util.types import AnyValue, Attributes

if TYPE_CHECKING:
    from esper.telemetry.metrics import Counters

_INT64 = range(-(2**63), 2**63)
_Source = tuple[Resource, InstrumentationScope | None]
"""Resource and scope of a span."""
_AFTER_SPAN = "]}]}]}"
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200  # SpanFlags of opentelemetry/proto/trace/v1/trace.proto


class FileSpanExporter(SpanExporter):
    """Appends each span to `path` by `os.write` before `export` returns. After that, a SIGKILL does not lose the span.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, counters: Counters) -> None:
        self._path, self._counters = path, counters
        self._descriptor = open_for_append(path)
        self._failed_before = False
        self._source: _Source | None = None
        self._before_span = ""
        """Text of a line before its span. It has the resource and the scope of `_source`."""

    def write_start(self, span: ReadableSpan) -> None:
        """Write the line of a start. A failure is logged but not counted, because the line of the end may follow."""
        self._write((span,))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans in order. After a failure, the remaining spans are lost and counted in `esper.spans.lost`."""
        lost = len(spans) - self._write(spans)
        self._counters.add("esper.spans.lost", lost)
        return SpanExportResult.FAILURE if lost else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file. Later spans are lost and counted. A second call has no effect."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1  # another file may get the number once it is closed
            os.close(descriptor)

    def _write(self, spans: Sequence[ReadableSpan]) -> int:
        """Return how many of the spans were written. The first failure is logged."""
        written = 0
        try:
            for span in spans:
                append_line(self._descriptor, self._line_of(span))
                written += 1
        except Exception as error:  # telemetry must not stop training; lost spans are counted and logged
            if not self._failed_before:
                self._failed_before = True
                print(f"esper: spans are being lost: {self._path}: {error!r}", file=sys.stderr, flush=True)
        return written

    def _line_of(self, span: ReadableSpan) -> str:
        """Return a span as an OTLP TracesData object in JSON. The end time of a span that has not ended is "0".

        All spans of a process have the same resource and scope, so their text is made once.
        """
        source = span.resource, span.instrumentation_scope
        known = self._source
        if known is None or known[0] is not source[0] or known[1] is not source[1]:
            self._source, self._before_span = source, _before_span(source)
        return f"{self._before_span}{_json(_span(span))}{_AFTER_SPAN}"


class FileSpans(SpanProcessor):
    """Writes each sampled span when it ends. A root span and a span whose parent is in another process are also written
    when they start; for other spans this would double the cost.
    """

    def __init__(self, exporter: FileSpanExporter) -> None:
        self._exporter = exporter

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Write the line of a start if the span has one."""
        del parent_context  # the span knows its parent
        if _is_sampled(span) and (span.parent is None or span.parent.is_remote):
            self._exporter.write_start(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Write the line of an end. After `shutdown` the span is lost and counted."""
        if _is_sampled(span):
            self._exporter.export((span,))

    def shutdown(self) -> None:
        """Close the file."""
        self._exporter.shutdown()


def _is_sampled(span: ReadableSpan) -> bool:
    context = span.get_span_context()
    return context is not None and context.trace_flags.sampled


def open_for_append(path: Path) -> int:
    """Open a file so that several processes can append to it.

    Raises:
        OSError: for example, `path` is a symbolic link.
    """
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def append_line(descriptor: int, line: str) -> None:
    """Append one line. If an earlier failure left an incomplete line at the end, that line is ended first.

    Raises:
        OSError: the line was not written, or only a part of it; or the file was deleted, so that nobody could read it.
    """
    state = os.fstat(descriptor)
    if state.st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "the file was deleted while it was written")
    size = state.st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    rest = memoryview(("\n" * torn + line + "\n").encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _before_span(source: _Source) -> str:
    resource, scope = source
    attributes = _json({"attributes": _attributes(resource.attributes)})
    named = _json({"name": scope.name, "version": scope.version or ""} if scope else {})
    return f'{{"resourceSpans":[{{"resource":{attributes},"scopeSpans":[{{"scope":{named},"spans":['


def _span(span: ReadableSpan) -> dict[str, object]:
    context, parent = span.get_span_context(), span.parent
    assert context is not None, "a span without a context is never exported"
    return {
        **_ids(context),
        "parentSpanId": format_span_id(parent.span_id) if parent else "",
        "flags": context.trace_flags | _HAS_IS_REMOTE | (_IS_REMOTE if parent and parent.is_remote else 0),
        "name": span.name,
        "kind": span.kind.value + 1,  # in OTLP, 0 means UNSPECIFIED
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time or 0),
        "attributes": _attributes(span.attributes),
        "droppedAttributesCount": span.dropped_attributes,
        "events": [_event(event) for event in span.events],
        "droppedEventsCount": span.dropped_events,
        "links": [_link(link) for link in span.links],
        "droppedLinksCount": span.dropped_links,
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }


def _ids(context: SpanContext) -> dict[str, object]:
    return {
        "traceId": format_trace_id(context.trace_id),
        "spanId": format_span_id(context.span_id),
        "traceState": context.trace_state.to_header(),
    }


def _event(event: Event) -> dict[str, object]:
    return {
        "timeUnixNano": str(event.timestamp),
        "name": event.name,
        "attributes": _attributes(event.attributes),
        "droppedAttributesCount": event.dropped_attributes,
    }


def _link(link: Link) -> dict[str, object]:
    return {**_ids(link.context), "attributes": _attributes(link.attributes)}


def _attributes(attributes: Attributes) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in (attributes or {}).items()]


def _value(value: AnyValue) -> dict[str, object]:
    """Return a value as an OTLP AnyValue. An integer beyond 64 bits becomes text, because OTLP has no type for it."""
    match value:
        case None:
            return {}
        case bool():
            return {"boolValue": value}
        case str():
            return {"stringValue": value}
        case int():
            return {"intValue" if value in _INT64 else "stringValue": str(int(value))}
        case float():
            return {"doubleValue": value if math.isfinite(value) else json.dumps(value)}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case Mapping():
            return {"kvlistValue": {"values": _attributes(value)}}
        case _:
            return {"arrayValue": {"values": [_value(item) for item in value]}}
