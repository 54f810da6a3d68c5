"""Decodes lines of OTLP JSON to spans, strictly, and encodes spans as OTLP JSON again.

Format: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. Ids are hexadecimal, 64-bit integers are text
or numbers, and enums are numbers. Unknown fields are ignored, as the format requires.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic_core import from_json

from esper.errors import SpanUnreadable

Attributes = Mapping[str, Any]
"""Attributes by key. A value is text, a bool, an int of 64 bits, a float, bytes, None, or a list or dict of these."""

NOTHING: Attributes = MappingProxyType({})

_TRACE_ID, _SPAN_ID = re.compile(r"[0-9a-fA-F]{32}"), re.compile(r"[0-9a-fA-F]{16}")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_NONE_SPANS = (None, "", _NO_SPAN)
_EMPTY: dict[str, Any] = {}
_FAILED = (2, "STATUS_CODE_ERROR")
_KINDS = range(6)
_INT64 = range(-(2**63), 2**63)
_DROPPED = ("droppedAttributesCount", "droppedEventsCount", "droppedLinksCount")
NAMED_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Event(NamedTuple):
    """An event of a span, such as an exception or a severe event."""

    time_ns: int
    """Unix time."""
    name: str
    attributes: Attributes


class Link(NamedTuple):
    """A link from a span to a span of another trace."""

    trace_id: str
    span_id: str
    attributes: Attributes


class Span(NamedTuple):
    """One span."""

    trace_id: str
    span_id: str
    parent_id: str
    """"": the span has no parent."""
    name: str
    role: str
    """Value of `esper.role` of the span, else of its resource. "": neither has it."""
    start_ns: int
    """Unix time."""
    end_ns: int | None
    """Unix time. None: only the start line of the span is on disk, so the span never ended, or has not ended yet."""
    failed: bool
    message: str = ""
    """Message of the status."""
    attributes: Attributes = NOTHING
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    resource: Attributes = NOTHING
    kind: int = 0
    flags: int = 0
    dropped_attributes: int = 0
    """Attributes that the span had and that are not on disk, because OpenTelemetry limits their number."""
    dropped_events: int = 0
    dropped_links: int = 0

    @property
    def known_ns(self) -> int:
        """The latest Unix time that is known of the span itself."""
        return self.start_ns if self.end_ns is None else self.end_ns


class LineDecoder:
    """Decodes lines. The beginning of a line, with the resource, is equal in most lines of a file, so that each
    different beginning is decoded once.
    """

    MOST = 256
    """Largest number of beginnings that are remembered."""

    def __init__(self) -> None:
        self._resources: dict[bytes, Attributes | None] = {}
        """Beginning of a line -> its resource. None: lines with this beginning are decoded as a whole."""

    def spans_of(self, line: bytes) -> list[Span]:
        """Return the spans of one line, which has one TracesData object.

        Raises:
            SpanUnreadable: the line is not JSON, or a field that this room uses has a wrong type.
        """
        try:
            place = line.find(BEGIN) + len(BEGIN)
            end = len(line) - (2 if line[-2:-1] == b"\r" else 1 if line[-1:] == b"\n" else 0) - len(END)
            if place >= len(BEGIN) and line.startswith(END, max(end, place)):
                resource = self._resource(line[:place])
                if resource is not None:
                    return [_span(raw, resource) for raw in parsed(line[place - 1 : end + 1])]
            return list(_spans(parsed(line)))
        except RecursionError as error:
            raise SpanUnreadable("JSON that is nested too deeply") from error
        except UnicodeDecodeError as error:
            raise SpanUnreadable("bytes that are not UTF-8") from error
        except ValueError as error:  # also an integer with thousands of digits
            raise SpanUnreadable("no JSON") from error

    def _resource(self, beginning: bytes) -> Attributes | None:
        """Return the resource of the lines that begin so, up to the spans, and end with `END`."""
        if beginning not in self._resources:
            if len(self._resources) >= self.MOST:
                self._resources.clear()
            self._resources[beginning] = _only_resource(beginning)
        return self._resources[beginning]


def parsed(text: bytes) -> Any:
    """Parse JSON, in less than half the time of `json.loads` if the text is as most lines are."""
    try:
        return from_json(text)
    except ValueError:  # also what only `json.loads` reads: halves of surrogate pairs, more than 200 levels
        return json.loads(text.decode())


BEGIN, END = b'"spans":[', b"]}]}]}"
"""The spans of a line with one resource and one scope are between these texts."""


def _only_resource(beginning: bytes) -> Attributes | None:
    """Return the resource, or None if the text between `BEGIN` and `END` is not the list of all spans of the line."""
    try:
        (group,) = _list(_object(json.loads((beginning + END).decode())), "resourceSpans")
        (scope,) = _list(_object(group), "scopeSpans")
        if _object(scope).get("spans") == [] and group.keys() == {"resource", "scopeSpans"}:
            return _attributes(_part(group, "resource"))
    except (ValueError, RecursionError):
        return None  # the whole line is decoded, and the reason of a failure is counted
    return None


def _spans(found: Any) -> Iterator[Span]:
    for group in _list(_object(found), "resourceSpans"):
        resource = _attributes(_part(group, "resource"))
        for scope in _list(_object(group), "scopeSpans"):
            for span in _list(_object(scope), "spans"):
                yield _span(span, resource)


def traces_data(spans: list[Span]) -> dict[str, Any]:
    """Return spans as one TracesData object for JSON. A span that never ended must have got an end before."""
    groups: dict[str, dict[str, Any]] = {}
    for span in spans:
        resource = _encoded(span.resource)
        key = json.dumps(resource)
        if key not in groups:
            scope = {"scope": {"name": "esper"}, "spans": []}
            groups[key] = {"resource": {"attributes": resource}, "scopeSpans": [scope]}
        groups[key]["scopeSpans"][0]["spans"].append(_encoded_span(span))
    return {"resourceSpans": list(groups.values())}


# -- decoding --------------------------------------------------------------------------------------------------------


def _object(found: Any) -> dict[str, Any]:
    if type(found) is not dict:
        raise SpanUnreadable("a part that has to be an object")
    return found


def _part(found: Any, key: str) -> dict[str, Any]:
    return _object(_object(found).get(key) or {})


def _list(found: dict[str, Any], key: str) -> list[Any]:
    value = found.get(key)
    if value is None:
        return []
    if type(value) is not list:
        raise SpanUnreadable(f"{key} has to be a list")
    return value


def _span(raw: Any, resource: Attributes) -> Span:
    if type(raw) is not dict:
        raise SpanUnreadable("a span has to be an object")
    attributes = _pairs(_list(raw, "attributes"))
    status = _object(raw.get("status") or _EMPTY)
    role = attributes.get("esper.role") or resource.get("esper.role")
    kind, flags, parent = raw.get("kind"), raw.get("flags"), raw.get("parentSpanId")
    return Span(
        _id(raw, "traceId", _TRACE_ID, _NO_TRACE),
        _id(raw, "spanId", _SPAN_ID, _NO_SPAN),
        _id(raw, "parentSpanId", _SPAN_ID, _NO_SPAN) if parent not in _NONE_SPANS else "",
        _text(raw, "name"),
        role if type(role) is str else "",
        _time(raw, "startTimeUnixNano"),
        _time(raw, "endTimeUnixNano") or None,
        status.get("code") in _FAILED,
        _text(status, "message"),
        attributes,
        tuple(map(_event, events)) if (events := _list(raw, "events")) else (),
        tuple(map(_link, links)) if (links := _list(raw, "links")) else (),
        resource,
        kind if type(kind) is int and kind in _KINDS else 0,
        flags if type(flags) is int and 0 <= flags < 2**32 else 0,
        *((0, 0, 0) if not any(dropped := [*map(raw.get, _DROPPED)]) else map(_count, dropped)),
    )


def _count(value: Any) -> int:
    """Return a number of dropped parts. A wrong number counts as 0, because nothing else depends on it."""
    return value if type(value) is int and 0 <= value < 2**32 else 0


def _event(raw: Any) -> Event:
    found = _object(raw)
    return Event(_time(found, "timeUnixNano"), _text(found, "name"), _attributes(found))


def _link(raw: Any) -> Link:
    found = _object(raw)
    trace_id, span_id = (_id(found, "traceId", _TRACE_ID, _NO_TRACE), _id(found, "spanId", _SPAN_ID, _NO_SPAN))
    return Link(trace_id, span_id, _attributes(found))


def _id(raw: dict[str, Any], key: str, form: re.Pattern[str], none: str) -> str:
    value = raw.get(key)
    if type(value) is not str or not form.fullmatch(value) or value == none:
        raise SpanUnreadable(f"{key} has to be an id in hexadecimal digits")
    return value.lower()


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if value is None:
        return ""
    if type(value) is not str:
        raise SpanUnreadable(f"{key} has to be text")
    return value if value.isascii() else _without_surrogates(value)


def _without_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON may contain and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def _time(raw: dict[str, Any], key: str) -> int:
    """Return a Unix time in nanoseconds. 0: the field is absent."""
    return _integer(raw[key], key, 0, 2**64) if key in raw else 0


def _integer(value: Any, key: str, least: int, beyond: int) -> int:
    number = int(value) if type(value) is str and _INTEGER.fullmatch(value) else value
    if type(number) is not int or not least <= number < beyond:
        raise SpanUnreadable(f"{key} has to be a whole number of 64 bits")
    return number


def _attributes(raw: dict[str, Any]) -> dict[str, Any]:
    return _pairs(_list(raw, "attributes"))


def _pairs(found: list[Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for pair in found:
        if type(pair) is not dict:
            raise SpanUnreadable("an attribute has to be an object")
        key, value = pair.get("key"), pair.get("value")
        if type(key) is not str:
            raise SpanUnreadable("the key of an attribute has to be text")
        text = value.get("stringValue") if type(value) is dict and len(value) == 1 else None
        plain = type(text) is str and text.isascii() and key.isascii()  # most values are short texts
        told[key if plain else _text(pair, "key")] = text if plain else _value(value)
    return told


def _value(raw: Any) -> Any:
    if raw is None:
        return None
    found = _object(raw)
    if len(found) > 1:
        raise SpanUnreadable("an attribute has several values")
    for kind, value in found.items():
        match kind:
            case "stringValue":
                return _text(found, kind)
            case "boolValue" if type(value) is bool:
                return value
            case "intValue":
                return _integer(value, kind, -(2**63), 2**63)
            case "doubleValue":
                return _double(value)
            case "arrayValue":
                return [_value(item) for item in _list(_object(value), "values")]
            case "kvlistValue":
                return _pairs(_list(_object(value), "values"))
            case "bytesValue":
                return _bytes(value)
        raise SpanUnreadable("an attribute has an unknown or wrong value")
    return None


def _double(value: Any) -> float:
    if type(value) is str and value in NAMED_FLOATS:
        return NAMED_FLOATS[value]
    if type(value) is float or (type(value) is int and abs(value) < 2**1023):
        return float(value)
    raise SpanUnreadable("doubleValue has to be a number")


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise SpanUnreadable("bytesValue has to be base64") from error


# -- encoding --------------------------------------------------------------------------------------------------------


def _encoded_span(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": span.parent_id,
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.known_ns),
        "attributes": _encoded(span.attributes),
        "events": [
            {"timeUnixNano": str(one.time_ns), "name": one.name, "attributes": _encoded(one.attributes)}
            for one in span.events
        ],
        "links": [
            {"traceId": one.trace_id, "spanId": one.span_id, "attributes": _encoded(one.attributes)}
            for one in span.links
        ],
        **dict(zip(_DROPPED, (span.dropped_attributes, span.dropped_events, span.dropped_links), strict=True)),
        "status": {"code": 2 if span.failed else 0, "message": span.message},
    }


def _encoded(attributes: Attributes) -> list[dict[str, Any]]:
    return [{"key": key, "value": _encoded_value(value)} for key, value in attributes.items()]


def _encoded_value(value: Any) -> dict[str, Any]:
    match value:
        case None:
            return {}
        case bool():
            return {"boolValue": value}
        case str():
            return {"stringValue": value}
        case int():
            return {"intValue" if value in _INT64 else "stringValue": str(value)}  # of the log of severe events
        case float():
            return {"doubleValue": value if math.isfinite(value) else json.dumps(value)}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case dict():
            return {"kvlistValue": {"values": _encoded(value)}}
        case _:
            return {"arrayValue": {"values": [_encoded_value(item) for item in value]}}
