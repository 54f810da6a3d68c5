"""Checks of exported traces against the rules of their formats: OTLP JSON, and Chrome's trace events for Perfetto.

OTLP: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. Chrome's trace events: "Trace Event Format",
docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from esper.ground.strict_json import strict_json

IDS = ("traceId", "spanId", "parentSpanId")


def _with_base64_ids(value: Any) -> Any:
    """OTLP writes ids in hexadecimal digits, and protobuf's own JSON writes bytes in base64."""
    if isinstance(value, list):
        return [_with_base64_ids(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(one)).decode() if key in IDS else _with_base64_ids(one)
        for key, one in value.items()
    }


def read_otlp(text: str) -> list[Span]:
    """The spans of a request to a collector, read by protobuf's parser: unknown fields and wrong types raise."""
    request = json_format.Parse(json.dumps(_with_base64_ids(json.loads(text))), ExportTraceServiceRequest())
    spans = [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
    ids = {(span.trace_id, span.span_id) for span in spans}
    assert len(ids) == len(spans) > 0
    for span in spans:
        assert (len(span.trace_id), len(span.span_id)) == (16, 8)
        assert any(span.trace_id)
        assert any(span.span_id)
        assert len(span.parent_span_id) in (0, 8)
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        assert all(len(link.trace_id) == 16 and len(link.span_id) == 8 for link in span.links)
        for attributes in (span.attributes, *(event.attributes for event in span.events)):
            keys = [one.key for one in attributes]
            assert len(keys) == len(set(keys)), "keys of attributes must be unique"
    return spans


def read_chrome(text: str) -> list[dict[str, Any]]:
    """The events of a file of Chrome's trace events, after a check of the rules for each kind of event."""
    told = json.loads(text)
    assert strict_json(told), "NaN is not JSON"
    assert told["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = told["traceEvents"]
    for event in events:
        assert {type(event["pid"]), type(event["tid"])} == {int}
        assert isinstance(event["name"], str)
        assert "args" not in event or isinstance(event["args"], dict)
        assert event["ph"] == "M" or (math.isfinite(event["ts"]) and event["ts"] >= 0)
        match event["ph"]:
            case "M":
                assert event["name"] in ("process_name", "thread_name", "process_labels", "process_sort_index")
                assert isinstance(event["args"]["name"], str)
            case "X":
                assert event["dur"] >= 0
            case "i":
                assert event["s"] in ("g", "p", "t")
            case "B" | "s" | "f":
                pass
            case other:
                raise AssertionError(f"kind {other} is not written")
    named = {event["pid"] for event in events if event["ph"] == "M"}
    assert named == {event["pid"] for event in events}
    _check_nesting(events)
    _check_flows(events)
    return events


def _end(slice_: dict[str, Any]) -> float:
    return math.inf if slice_["ph"] == "B" else slice_["ts"] + slice_["dur"]


def _slices(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] in "XB":
            found.setdefault((event["pid"], event["tid"]), []).append(event)
    return found


ROUNDING = 1e-3
"""Microseconds. Times are nanoseconds, so a sum of two floats may be off by less."""


def _check_nesting(events: list[dict[str, Any]]) -> None:
    """Slices of a thread are nested or apart."""
    for slices in _slices(events).values():
        above: list[dict[str, Any]] = []
        for one in sorted(slices, key=lambda event: (event["ts"], -_end(event))):
            while above and _end(above[-1]) <= one["ts"] + ROUNDING:
                above.pop()
            assert not above or _end(one) <= _end(above[-1]) + ROUNDING
            above.append(one)


def _check_flows(events: list[dict[str, Any]]) -> None:
    """Each arrow has one begin and one end with the same name and category, and both are in a slice of their thread."""
    begins, ends = ({one["id"]: one for one in events if one["ph"] == kind} for kind in "sf")
    assert begins.keys() == ends.keys()
    assert len(begins) + len(ends) == sum(one["ph"] in "sf" for one in events), "ids of arrows must be unique"
    slices = _slices(events)
    for key, begin in begins.items():
        end = ends[key]
        assert (begin["name"], begin["cat"]) == (end["name"], end["cat"])
        assert end["bp"] == "e"
        assert begin["ts"] <= end["ts"]
        for one in (begin, end):
            around = slices[one["pid"], one["tid"]]
            assert any(a["ts"] <= one["ts"] + ROUNDING and one["ts"] <= _end(a) + ROUNDING for a in around)
