"""Risk: each figure turns a decision into a hold at its limit and not before, with the figure beside the limit."""

from __future__ import annotations

from typing import Any

import pytest
from deciding import make_decision, make_pair, make_seed, make_state

from esper.leyline.decisions import Hold, HoldReason
from esper.tamiyo.risk import ForkCosts, assess, cost_ratio, coverage, loss_spike, milder
from esper.tamiyo.settings import RiskConfig

LIMITS = RiskConfig()
HOST_FLOPS = 10_000
COSTS = ForkCosts(HOST_FLOPS, HOST_FLOPS)


@pytest.mark.parametrize(
    ("state", "decision", "limits", "held"),
    [
        ({"training__train_loss": 1.5, "training__best_train_loss": 1.25}, {}, {}, ("loss spike", 0.2, 0.15)),
        ({}, {"risk": 0.98}, {}, ("policy risk", 0.98, 0.98)),
        ({}, {"risk": 1.0}, {}, ("policy risk", 1.0, 0.98)),
        ({"isolation_violations": 1}, {}, {}, ("isolation violations", 1, 0)),
        ({}, {}, {"max_cost_ratio": 2.0}, ("modelled cost", 2.1, 2.0)),
        ({}, {}, {"min_coverage": 1.0}, ("coverage", 1.0, 1.0)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_figure_over_its_limit_holds(
    state: dict[str, Any], decision: dict[str, Any], limits: dict[str, Any], held: tuple[str, float, float]
) -> None:
    hold = assess(make_state(**state), make_decision(make_pair(), **decision), RiskConfig(**limits), COSTS)

    assert isinstance(hold, Hold)
    assert (hold.reason, hold.fence, hold.detail) == (HoldReason.RISK, 5, held[0])
    assert (hold.measured, hold.limit) == (pytest.approx(held[1]), held[2])


@pytest.mark.parametrize(
    ("state", "decision", "limits"),
    [
        ({}, {}, {}),
        ({"training__train_loss": 1.25, "training__best_train_loss": 1.0}, {}, {"max_loss_spike": 0.25}),
        ({"training__train_loss": 0.1}, {}, {}),
        ({"training__train_loss": None, "training__best_train_loss": None}, {}, {}),
        ({}, {"risk": 0.97}, {}),
        ({"isolation_violations": 2}, {}, {"max_isolation_violations": 2}),
        ({}, {}, {"max_cost_ratio": 2.1}),
    ],
    ids=str,
)
def test_a_figure_at_its_limit_or_not_measured_lets_the_decision_go_on(
    state: dict[str, Any], decision: dict[str, Any], limits: dict[str, Any]
) -> None:
    made = make_decision(make_pair(), **decision)

    assert assess(make_state(**state), made, RiskConfig(**limits), COSTS) is None


def test_a_spike_is_measured_against_the_best_round_before() -> None:
    assert loss_spike(make_state(training__train_loss=3.0, training__best_train_loss=2.0)) == 0.5
    assert loss_spike(make_state(training__train_loss=-1.0, training__best_train_loss=-2.0)) == 0.5
    assert loss_spike(make_state(training__best_train_loss=None)) is None


def test_the_cost_is_that_of_all_forks_with_the_control() -> None:
    two = make_decision(make_pair(flops=5_000), make_pair("norm", flops=2_500))
    assert cost_ratio(two, COSTS) == 3.75
    assert cost_ratio(two, ForkCosts(HOST_FLOPS, 4 * HOST_FLOPS, placebos=8)) == 11.75 / 4
    replica = two.model_copy(update={"replica_of": "seed-1"})
    assert cost_ratio(replica, ForkCosts(HOST_FLOPS, HOST_FLOPS, placebos=8)) == 3.75  # it has no placebos


def test_coverage_is_the_share_of_features_that_were_measured() -> None:
    unmeasured = {"training__train_loss": None, "training__gradient_norm": None, "training__best_train_loss": None}
    grafted, lost = make_seed("grafted", gain=None), make_seed("lost", gain=None, ordinal=None)

    assert coverage(make_state()) == 1.0
    assert coverage(make_state(**unmeasured)) == 2 / 5
    assert coverage(make_state(seeds=(grafted, lost))) == 5 / 6  # a seed that never was in the host has no feature
    assert coverage(make_state(**unmeasured, options=())) == 0.0


def test_nothing_measured_holds_by_its_coverage() -> None:
    unmeasured = {"training__train_loss": None, "training__gradient_norm": None, "training__best_train_loss": None}
    hold = assess(make_state(**unmeasured, options=()), make_decision(make_pair()), LIMITS, COSTS)

    assert hold == Hold(fence=5, reason=HoldReason.RISK, detail="coverage", measured=0.0, limit=0.1)


def test_a_tournament_too_dear_is_trimmed_and_not_refused_for_ever() -> None:
    pairs = [make_pair(name, flops=HOST_FLOPS) for name in "abcdef"]  # the control costs 1, each fork 2
    limits = RiskConfig(max_cost_ratio=7.5)
    trimmed = milder(make_decision(*pairs), limits, COSTS)
    assert [pair.blueprint_id for pair in trimmed.pairs] == ["a", "b", "c"]
    dear = milder(make_decision(make_pair("dear", flops=9 * HOST_FLOPS), *pairs[:3]), limits, COSTS)
    assert [pair.blueprint_id for pair in dear.pairs] == [
        "a",
        "b",
        "c",
    ]  # the dear pair costs no cheap one its place
    assert assess(make_state(), trimmed, limits, COSTS) is None
    assert len(milder(make_decision(*pairs), RiskConfig(max_cost_ratio=0.1), COSTS).pairs) == 1
