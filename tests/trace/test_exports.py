"""Exports of any trace obey the rules of their formats: of real runs, and of spans that are wrong in any way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from span_lines import failed, line, span
from trace_formats import read_chrome, read_otlp

from esper.flow.result import Result
from esper.ground.strict_json import strict_json
from esper.trace.exporting_traces import as_otlp, as_perfetto
from esper.trace.otlp_json import LineDecoder, Span
from esper.trace.span_store import spans_with
from esper.trace.span_tree import trees

ATTRIBUTES = st.dictionaries(
    st.text(max_size=4),
    st.one_of(
        st.text(max_size=4).map(lambda text: {"stringValue": text}),
        st.integers(-(2**63), 2**63 - 1).map(lambda number: {"intValue": str(number)}),
        st.floats().map(lambda number: {"doubleValue": number if number - number == 0 else "NaN"}),
        st.just({"arrayValue": {"values": [{"boolValue": True}, {}]}}),
        st.just({"kvlistValue": {"values": [{"key": "inner", "value": {"bytesValue": "AAE="}}]}}),
    ),
    max_size=2,
)
SPANS = st.lists(
    st.tuples(
        st.integers(1, 30), st.none() | st.integers(-5, 30), st.integers(0, 20), st.sampled_from("abc"), ATTRIBUTES
    ),
    min_size=1,
    max_size=15,
)


def made(parts: list[Any]) -> list[Span]:
    spans = [
        span(
            "s",
            start=start,
            end=None if length is None else start + max(length, 1 - start),
            spanId=f"{number + 1:016x}",
            parentSpanId=f"{parent % 17:016x}" if parent % 17 else "",
            attributes=[
                {"key": "esper.role", "value": {"stringValue": role}},
                *({"key": f"x{key}", "value": value} for key, value in told.items()),
            ],
            **(failed("E", "why") if parent % 5 == 1 else {}),
        )
        for number, (start, length, parent, role, told) in enumerate(parts)
    ]
    return LineDecoder().spans_of(line(*spans).encode())


@given(SPANS)
def test_any_spans_are_exported_by_the_rules(parts: list[Any]) -> None:
    spans = made(parts)
    assert len(read_otlp(strict_json(as_otlp(trees(spans))))) == len(spans)
    events = read_chrome(strict_json(as_perfetto(trees(spans))))
    assert sum(event["ph"] in "XB" for event in events) == len(spans)


def test_every_trace_of_a_run_is_exported_by_the_rules(undisturbed: Result) -> None:
    traces = spans_with(Path(undisturbed.run_dir)).by_trace()
    assert len(traces) > 10
    for trace_id, spans in traces.items():
        exported = read_otlp(strict_json(as_otlp(trees(spans))))
        assert {one.span_id.hex(): one.parent_span_id.hex() for one in exported} == {
            one.span_id: one.parent_id for one in spans
        }
        assert {one.trace_id.hex() for one in exported} == {trace_id}
        read_chrome(json.dumps(as_perfetto(trees(spans))))
