"""The lanes of a Perfetto export: spans of a lane are nested, and many overlapping spans take no quadratic time."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from span_lines import TRACE, line, span

from esper.trace.lanes import lanes_of
from esper.trace.otlp_json import LineDecoder, Span
from esper.trace.span_tree import Node, trees, walk

Times = list[tuple[int, int | None, int]]


def laned(times: Times) -> list[tuple[Node, int]]:
    """The spans with these starts, durations and numbers of parents, and their lanes."""
    spans = [
        span(
            "s",
            start=start,
            end=None if length is None else start + length,
            spanId=f"{number + 1:016x}",
            parentSpanId=f"{parent % (number + 1):016x}" if parent % (number + 1) else "",
        )
        for number, (start, length, parent) in enumerate(times)
    ]
    nodes = [*walk(trees(LineDecoder().spans_of(line(*spans).encode())))]
    nodes.sort(key=lambda node: (node.span.start_ns, -node.end_ns))
    lanes = lanes_of(nodes)
    return [(node, lanes[id(node)]) for node in nodes]


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 30)), st.integers(0, 20)),
        min_size=1,
        max_size=20,
    )
)
def test_two_spans_of_a_lane_are_nested_or_apart_and_no_lane_is_idle_in_vain(times: Times) -> None:
    placed = laned(times)
    for number, (node, lane) in enumerate(placed):
        for other, its in placed[:number]:
            if its == lane and node.span.start_ns < other.end_ns:
                assert node.end_ns <= other.end_ns
            assert its != lane or (node.span.end_ns is not None and other.span.end_ns is not None)
    ended = [node for node, _ in placed if node.span.end_ns is not None]
    never = len(placed) - len(ended)
    assert max(lane for _, lane in placed) <= never + max(
        sum(one.span.start_ns <= node.span.start_ns < max(one.end_ns, one.span.start_ns + 1) for one in ended)
        for node in [*ended, placed[0][0]]
    )


def test_a_span_is_in_the_lane_of_its_parent_if_it_fits() -> None:
    placed = laned([(0, 100, 0), (10, 80, 0), (20, 70, 1), (95, 5, 1)])
    assert [lane for _, lane in placed] == [1, 1, 1, 1]
    placed = laned([(0, 100, 0), (10, 110, 0), (20, 60, 2), (30, 10, 1)])
    assert [lane for _, lane in placed] == [1, 2, 2, 1]


def test_twenty_thousand_overlapping_spans_take_no_quadratic_time() -> None:
    nodes = [Node(Span(TRACE, "", "", "s", "", start, start + 20_000, failed=False)) for start in range(20_000)]
    for node in nodes:
        node._end_ns = node.span.known_ns
    began = time.process_time()
    assert len(set(lanes_of(nodes).values())) == 20_000
    assert time.process_time() - began < 3
