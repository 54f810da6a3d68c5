"""The trees of a trace: parents, self times, the critical path, folded siblings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from span_lines import TRACE, failed, span, span_id

from esper.trace.failures import failure_of
from esper.trace.folding import rows
from esper.trace.otlp_json import LineDecoder, Span
from esper.trace.span_tree import Node, trees, walk

MS = 10**6


def read(*spans: dict[str, object]) -> list[Span]:
    from span_lines import line

    return LineDecoder().spans_of(line(*spans).encode())


def by_name(roots: list[Node]) -> dict[str, Node]:
    return {node.span.name: node for node in walk(roots)}


def test_self_time_is_without_the_union_of_the_children_and_not_their_sum() -> None:
    found = by_name(
        trees(
            read(
                span("root", end=100), span("a", "root", 10, 50), span("b", "root", 30, 60), span("c", "root", 90, 130)
            )
        )
    )
    assert found["root"].self_ns == (100 - 50 - 10) * MS  # a and b cover 10-60, and c 90-100
    assert found["a"].self_ns == 40 * MS


def test_the_critical_path_is_of_those_that_ended_last() -> None:
    found = by_name(
        trees(
            read(span("root", end=100), span("a", "root", 0, 40), span("b", "root", 0, 60), span("c", "root", 70, 95))
        )
    )
    assert {name for name, node in found.items() if node.critical} == {"root", "b", "c"}
    assert {name: node.critical_ns // MS for name, node in found.items() if node.critical} == {
        "root": 15,
        "b": 60,
        "c": 25,
    }


def test_a_parent_that_is_not_on_disk_leaves_a_root_and_a_circle_is_cut_once() -> None:
    roots = trees(
        read(span("orphan", "gone"), span("x", "z", 1), span("y", "x", 2), span("z", "y", 3), span("self", "self", 4))
    )
    found = by_name(roots)
    assert [node.span.name for node in roots] == ["orphan", "x", "self"]
    assert found["orphan"].orphan
    assert not found["orphan"].in_cycle
    assert [found[name].in_cycle for name in ("x", "y", "z", "self")] == [True, False, False, True]


def test_an_end_before_its_start_and_a_span_that_never_ended_have_no_negative_times() -> None:
    found = by_name(trees(read(span("root", end=None), span("back", "root", 50, 20), span("late", "root", 60, 70))))
    assert (found["root"].duration_ns, found["back"].duration_ns) == (None, 0)
    assert found["root"].end_ns - found["root"].span.start_ns == 70 * MS


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 50), st.integers(0, 50)), max_size=30))
def test_every_span_is_in_one_place_and_the_critical_path_is_as_long_as_the_root(
    drawn: list[tuple[int, int, int, int]],
) -> None:
    unique = {f"s{name}": (f"s{parent}", start, end) for name, parent, start, end in drawn}
    spans = read(*(span(name, parent, start, end) for name, (parent, start, end) in unique.items()))
    roots = trees(spans)
    nodes = list(walk(roots))
    assert sorted(node.span.name for node in nodes) == sorted(unique)
    for root in roots:
        below = list(walk([root]))
        assert sum(node.critical_ns for node in below) == root.last_ns - root.span.start_ns
        assert all(0 <= node.self_ns <= (node.duration_ns or 0) for node in below)


def test_ten_thousand_spans_fold_to_a_page_and_failures_stay() -> None:
    steps = [span(f"s{number}", "root", number, number + 1, name="esper step") for number in range(10_000)]
    steps[5000] |= failed("LossDeviceMismatch")
    found = list(rows(trees(read(span("root", end=20_000), *steps))))
    assert [(row.node.span.name, row.count) for row in found] == [("root", 1), ("esper step", 9999), ("esper step", 1)]
    assert (found[1].total_ns, found[1].longest_ns) == (9999 * MS, MS)
    assert found[2].node.span.span_id == span_id("s5000")
    assert len(list(rows(trees(read(span("root"), *steps[:20])), fold=False))) == 21


def test_a_chain_of_ten_thousand_spans_is_no_recursion() -> None:
    chain = [span(f"s{number}", f"s{number - 1}" if number else "", number, 20_000) for number in range(10_000)]
    assert max(row.node.depth for row in rows(trees(read(*chain)))) == 9_999


def test_an_error_is_shown_where_it_began() -> None:
    lost = failed("ActorLost", "it is gone", actor="tolaria")
    found = by_name(trees(read(span("root", **lost), span("a", "root", **lost), span("b", "root", **failed("Other")))))
    told = {name: failure_of(node) for name, node in found.items()}
    assert [told[name] is not None and told[name].began_here for name in ("root", "a", "b")] == [False, True, True]
    assert told["a"] is not None
    assert (told["a"].error, told["a"].fields) == ("ActorLost", {"actor": "tolaria"})
    assert {node.span.trace_id for node in found.values()} == {TRACE}


def test_an_error_that_has_gained_a_reason_on_its_way_is_shown_with_it() -> None:
    halted, why = failed("EmergencyStop", "told to stop"), failed("EmergencyStop", "fire (signal 3)", reason="fire")
    found = by_name(trees(read(span("root", **why), span("step", "root", **halted))))
    told = {name: failure_of(node) for name, node in found.items()}
    assert [told[name] is not None and told[name].began_here for name in ("root", "step")] == [True, True]
    assert told["root"] is not None
    assert told["root"].fields == {"reason": "fire"}


def test_a_recovery_that_ends_after_its_round_is_on_the_critical_path() -> None:
    found = by_name(trees(read(span("round", end=10), span("recover", "round", 10, 90), span("step", "round", 0, 9))))
    assert {name for name, node in found.items() if node.critical} == {"round", "recover", "step"}
    assert (found["recover"].critical_ns, found["round"].last_ns - found["round"].span.start_ns) == (80 * MS, 90 * MS)
