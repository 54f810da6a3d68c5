"""Lines of span files as esper writes them, and telemetry folders of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TRACE = "a1" * 16


def span_id(name: str) -> str:
    """The id that a test's span of this name has."""
    return (name.encode().hex() + "0" * 16)[:16]


def span(
    word: str, /, parent: str = "", start: int = 0, end: int | None = 10, role: str = "tolaria", **changes: Any
) -> dict[str, Any]:
    """A span that a test names by one word of up to eight letters; times in milliseconds. `end=None`: a start line."""
    attributes = [{"key": "esper.role", "value": {"stringValue": role}}]
    begin_ns = 1_700_000_000_000_000_000
    return {
        "traceId": TRACE,
        "spanId": span_id(word),
        "parentSpanId": span_id(parent) if parent else "",
        "name": word,
        "kind": 1,
        "startTimeUnixNano": str(begin_ns + start * 10**6),
        "endTimeUnixNano": str(begin_ns + end * 10**6) if end is not None else "0",
        "attributes": attributes,
        "events": [],
        "links": [],
        "status": {"code": 0, "message": ""},
    } | changes


def failed(error: str, message: str = "it broke", **fields: str) -> dict[str, Any]:
    """The changes that make a span fail with an error."""
    told = {**fields, "exception.type": f"esper.errors.{error}", "exception.message": message}
    pairs = [{"key": key, "value": {"stringValue": value}} for key, value in told.items()]
    event = {"timeUnixNano": "1700000000000000000", "name": "exception", "attributes": pairs}
    return {"status": {"code": 2, "message": f"{error}: {message}"}, "events": [event]}


def line(*spans: dict[str, Any], role: str = "tolaria") -> str:
    """One line of a span file."""
    resource = {"attributes": [{"key": "esper.role", "value": {"stringValue": role}}]}
    groups = [{"resource": resource, "scopeSpans": [{"scope": {"name": "esper"}, "spans": list(spans)}]}]
    return json.dumps({"resourceSpans": groups}, separators=(",", ":")) + "\n"


def write(run: Path, *spans: dict[str, Any], name: str = "spans-conductor-1.jsonl", tail: str = "") -> Path:
    """Write a run directory with one span file, a span a line. Return the directory."""
    (run / "telemetry").mkdir(parents=True, exist_ok=True)
    (run / "telemetry" / name).write_text("".join(line(one) for one in spans) + tail)
    return run
