"""Writes ended spans as OTLP-JSON lines to one file.

A lost span is counted and logged, and the run continues. Format:
https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/ (each line is one TracesData, here with one
ResourceSpans) and https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding (ids in hex, 64-bit integers as
text, enums as numbers).
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, format_span_id, format_trace_id
from opentelemetry.util.types import AnyValue, Attributes

if TYPE_CHECKING:
    from esper.telemetry.metrics import Counters

_INT64 = range(-(2**63), 2**63)
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

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans in order. After a failure, the remaining spans are lost and counted in `esper.spans.lost`."""
        written = 0
        try:
            for span in spans:
                append_line(self._descriptor, json.dumps(traces_data(span), separators=(",", ":"), allow_nan=False))
                written += 1
        except Exception as error:  # telemetry must not stop training; the lost spans are counted and logged
            self._lose(len(spans) - written, error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file. Later spans are lost and counted. A second call has no effect."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1  # another file may get the number once it is closed
            os.close(descriptor)

    def _lose(self, spans: int, error: Exception) -> None:
        self._counters.add("esper.spans.lost", spans)
        if not self._failed_before:
            self._failed_before = True
            print(f"esper: spans are being lost: {self._path}: {error!r}", file=sys.stderr, flush=True)


def open_for_append(path: Path) -> int:
    """Open a file so that several processes can append to it.

    Raises:
        OSError: for example, `path` is a symbolic link.
    """
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def append_line(descriptor: int, line: str) -> None:
    """Append one line. If an earlier failure left an incomplete line at the end, that line is ended first.

    Raises:
        OSError: the line was not written, or only a part of it.
    """
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    rest = memoryview(("\n" * torn + line + "\n").encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def traces_data(span: ReadableSpan) -> dict[str, object]:
    """Return an ended span as an OTLP TracesData object for JSON."""
    scope = span.instrumentation_scope
    scope_spans = {
        "scope": {"name": scope.name, "version": scope.version or ""} if scope else {},
        "spans": [_span(span)],
    }
    resource = {"attributes": _attributes(span.resource.attributes)}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope_spans]}]}


def _span(span: ReadableSpan) -> dict[str, object]:
    context, parent = span.get_span_context(), span.parent
    assert context is not None, "a span without a context is never exported"
    assert span.end_time is not None, "only ended spans are exported"
    return {
        **_ids(context),
        "parentSpanId": format_span_id(parent.span_id) if parent else "",
        "flags": context.trace_flags | _HAS_IS_REMOTE | (_IS_REMOTE if parent and parent.is_remote else 0),
        "name": span.name,
        "kind": span.kind.value + 1,  # in OTLP, 0 means UNSPECIFIED
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
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
