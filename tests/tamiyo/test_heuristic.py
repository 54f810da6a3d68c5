"""The readable policy: a tournament, then replicas of its winner, then the field again after a rest."""

from __future__ import annotations

import math
from typing import Any

import pytest
from deciding import make_pair, make_report, make_seed, make_state

from esper.leyline.decisions import Decision
from esper.leyline.reports import FieldReport
from esper.leyline.stages import Stage
from esper.leyline.state import RoundState, SeedState
from esper.tamiyo.heuristic import RETRY_FENCES, SETTLED_RETRY_FENCES, HeuristicPolicy


def decide(state: RoundState, *past: FieldReport, candidates: int = 18, replicas: int = 6) -> Decision:
    return HeuristicPolicy(candidates, replicas, ramp_steps=30).decide(state, state.options, past)


def named(decision: Decision) -> list[tuple[str, str]]:
    return [(pair.slot, pair.blueprint_id) for pair in decision.pairs]


def test_the_first_tournament_is_over_everything_that_is_open_least_risk_first() -> None:
    decision = decide(make_state())

    assert named(decision) == [("body", "norm"), ("body", "mlp")]
    assert (decision.replica_of, decision.hold, decision.fence) == (None, None, 5)
    assert (decision.policy, decision.policy_version) == ("heuristic", "heuristic-1")


def test_the_same_state_gives_the_same_decision() -> None:
    assert decide(make_state()) == decide(make_state())
    assert decide(make_state()).decision_id != decide(make_state(fence=6)).decision_id


def test_equal_risks_are_ordered_by_slot_and_blueprint() -> None:
    options = tuple(make_pair(name, slot) for slot, name in [("b", "x"), ("a", "y"), ("a", "x")])

    assert named(decide(make_state(options=options))) == [("a", "x"), ("a", "y"), ("b", "x")]


@pytest.mark.parametrize(
    ("candidates", "tests_used", "count"), [(1, 0, 1), (18, 399, 1), (18, 398, 2), (2, 0, 2)], ids=str
)
def test_a_tournament_is_no_larger_than_its_budgets(candidates: int, tests_used: int, count: int) -> None:
    assert len(decide(make_state(tests_used=tests_used), candidates=candidates).pairs) == count


def first_field() -> tuple[tuple[SeedState, ...], list[FieldReport], tuple[Any, ...]]:
    """Seeds, reports and options after a first tournament: a won, b and c came next, d to f were dropped."""
    seeds = [make_seed(name, slot=name, command_id="command-1", stage=Stage.DORMANT) for name in "bcdefa"]
    seeds[-1] = seeds[-1].model_copy(update={"stage": Stage.BLENDING})
    gains = {"b": 0.01, "c": 0.02, "d": 0.05, "e": 0.04, "f": None}
    reports = [
        make_report(
            name,
            seed_id=name,
            slot=name,
            pick_gain=gain,
            reasons=("outperformed" if name in "bc" else "not_enough_steps",),
        )
        for name, gain in gains.items()
    ]
    return tuple(seeds), reports, tuple(make_pair("mlp", slot) for slot in "abcdefg")


@pytest.mark.parametrize(("count", "slots"), [(4, "acbd"), (9, "acbde"), (1, "a")])
def test_later_tournaments_are_between_the_best_pairs_of_the_first(count: int, slots: str) -> None:
    seeds, reports, options = first_field()
    state = make_state(seeds=seeds, options=options)
    policy = HeuristicPolicy(18, 1, ramp_steps=30, best_again=count)
    assert named(policy.decide(state, options, reports)) == [(slot, "mlp") for slot in slots]
    later = [make_seed("z", slot="g", command_id="command-2", stage=Stage.DORMANT)]
    after = state.model_copy(update={"seeds": (*seeds, *later)})
    assert named(policy.decide(after, options, reports)) == [(slot, "mlp") for slot in slots]
    assert len(policy.decide(make_state(options=options), options, ()).pairs) == 7
    closed = policy.decide(state, options[6:], reports)
    assert (closed.pairs, closed.hold) == ((), "none of the best pairs of the first tournament is open")
    poor = make_state(seeds=seeds, options=options, parameter_budget=10)
    told = policy.decide(poor, options[6:], reports).hold
    assert told == f"{closed.hold}; over the 10 parameters that growth.parameter_budget leaves: " + ", ".join(
        f"mlp at {slot}" for slot in "abcdef"
    )


def test_a_pair_that_diverged_comes_last() -> None:
    seeds, reports, options = first_field()
    diverged = [one.model_copy(update={"pick_gain": math.nan}) if one.slot == "b" else one for one in reports]
    policy = HeuristicPolicy(18, 1, ramp_steps=30, best_again=9)
    state = make_state(seeds=seeds, options=options)
    assert named(policy.decide(state, options, diverged)) == [(slot, "mlp") for slot in "acbde"]
    dropped = [one.model_copy(update={"pick_gain": math.nan}) if one.slot == "d" else one for one in reports]
    assert named(policy.decide(state, options, dropped)) == [(slot, "mlp") for slot in "acbed"]


@pytest.mark.parametrize(
    ("looks", "reasons", "again"),
    [
        (2, ("within_placebo",), False),
        (2, ("no_improvement", "within_placebo"), False),
        (2, ("unstable", "within_placebo"), True),  # so it was not judged again
        (0, ("within_placebo",), True),
    ],
)
def test_pairs_that_later_looks_refused_are_not_tried_once_more(
    looks: int, reasons: tuple[str, ...], again: bool
) -> None:
    seeds, reports, options = first_field()
    state = make_state(seeds=tuple(seed.model_copy(update={"stage": Stage.CULLED}) for seed in seeds), options=options)
    first = make_report(seed_id=seeds[0].seed_id, slot="a", pick_gain=0.5, reasons=reasons)
    decision = HeuristicPolicy(18, 1, ramp_steps=30, best_again=4, looks=looks).decide(
        state, options, (first, *reports)
    )
    assert bool(decision.pairs) == again
    assert (decision.hold is None) == again


def test_a_winner_is_repeated_alone() -> None:
    decision = decide(make_state(seeds=(make_seed("winner", stage=Stage.BLENDING),)))

    assert named(decision) == [("body", "mlp")]
    assert decision.replica_of == "winner"


def replica(name: str, **changes: Any) -> SeedState:
    return make_seed(name, **({"replica_of": "winner"} | changes))


def test_a_winner_is_repeated_until_its_number_is_reached() -> None:
    family = (make_seed("winner"), replica("r1", ordinal=1))
    report = make_report(window_fences=(2, 4))

    assert decide(make_state(seeds=family), report, replicas=3).replica_of == "winner"
    enough = decide(make_state(seeds=family), report, replicas=2)
    assert enough.replica_of is None
    assert named(enough) == [("body", "norm")]  # the winner's own pair rests


@pytest.mark.parametrize("stage", [Stage.CULLED, Stage.DORMANT, Stage.EMBARGOED])
def test_a_replica_that_failed_ends_its_family(stage: Stage) -> None:
    family = (make_seed("winner"), replica("r1", stage=stage, ordinal=None))

    assert decide(make_state(seeds=family)).replica_of is None


def test_a_winner_whose_pair_is_closed_gives_way_to_a_tournament() -> None:
    decision = decide(make_state(seeds=(make_seed("winner"),), options=(make_pair("norm"),)))

    assert decision.replica_of is None
    assert named(decision) == [("body", "norm")]


def test_the_latest_winner_counts_whatever_slot_it_stands_in() -> None:
    older = make_seed("older", slot="deep", ordinal=4)  # the fifth in its slot
    lost = make_seed("lost", stage=Stage.DORMANT, ordinal=None)
    newer = make_seed("newer", ordinal=0)  # the first in another

    assert decide(make_state(seeds=(older, lost, newer))).replica_of == "newer"
    assert decide(make_state(seeds=(older, newer, lost))).replica_of == "newer"


def test_a_pair_that_was_tried_rests_a_little_while_nothing_has_won() -> None:
    tried = make_report(window_fences=(2, 3))

    assert named(decide(make_state(fence=3 + RETRY_FENCES - 1), tried)) == [("body", "norm")]
    assert len(decide(make_state(fence=3 + RETRY_FENCES), tried).pairs) == 2


def test_a_pair_that_was_tried_rests_long_once_a_seed_has_won() -> None:
    tried, family = make_report(window_fences=(2, 3)), (make_seed("winner"),)
    early, late = (make_state(fence=3 + SETTLED_RETRY_FENCES + more, seeds=family) for more in (-1, 0))

    assert named(decide(early, tried, replicas=1)) == [("body", "norm")]
    assert len(decide(late, tried, replicas=1).pairs) == 2


def test_it_holds_with_a_reason_where_everything_rests() -> None:
    past = [make_report(name, blueprint_id=name) for name in ("mlp", "norm")]
    decision = decide(make_state(), *past)

    assert decision.pairs == ()
    assert decision.hold == "every open pair was tried a short while ago"
