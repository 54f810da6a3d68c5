"""What a plan must carry: each thing that it lacks is named, told once, and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from growing import graft_plan

from esper.errors import DependencyViolationError
from esper.ground.tensors import blob_digest
from esper.leyline.reports import HostPlan, JoinPlan, RatePlan, RemovePlan, Weights
from esper.telemetry import Telemetry
from esper.tolaria.dependencies import check_plan

IDS: dict[str, Any] = {"command_id": "c", "run_id": "run", "generation": 3, "seed_id": "s", "fence": 2}
GRAFT = graft_plan(b"weights", **IDS)
WEIGHTS = {blob_digest(b"weights"): b"weights"}
PLANS = [GRAFT, JoinPlan(**IDS), RatePlan(**IDS, rate_scale=0.5), RemovePlan(**IDS)]
KINDS = ["graft", "join", "rate", "remove"]


def check(plan: HostPlan, weights: Weights = WEIGHTS) -> None:
    check_plan(plan, weights, run_id="run", generation=3, modules=frozenset({"body", "head"}))


@pytest.mark.parametrize("plan", PLANS, ids=KINDS)
def test_a_sound_plan_passes_in_silence(plan: HostPlan, told: Callable[[], list[str]]) -> None:
    check(plan)
    assert told() == []


@pytest.mark.parametrize("plan", PLANS, ids=KINDS)
@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({"command_id": ""}, "command id missing"),
        ({"seed_id": ""}, "seed id missing"),
        ({"run_id": ""}, "another run's"),
        ({"run_id": "other"}, "another run's"),
        ({"generation": 2}, "another generation's"),
        ({"generation": 4}, "another generation's"),
    ],
)
def test_any_plan_without_its_ids_is_refused(
    plan: HostPlan, changed: dict[str, Any], missing: str, telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    with pytest.raises(DependencyViolationError) as caught:
        check(plan.model_copy(update=changed))
    assert caught.value.missing == missing
    assert told() == ["dependency_violation"]
    assert telemetry.counters.total("esper.severe_events", event="dependency_violation") == 1


@pytest.mark.parametrize(
    ("changed", "weights", "missing"),
    [
        ({"slot": "bodies"}, WEIGHTS, "target not in the host"),
        ({"slot": ""}, WEIGHTS, "target not in the host"),
        ({}, {blob_digest(b"weights"): b"weights!"}, "weights are not those digested"),
        ({}, {}, "weights not given"),
        ({"weights_digest": ""}, WEIGHTS, "weights not given"),
    ],
)
def test_a_graft_without_its_target_or_its_weights_is_refused(
    changed: dict[str, Any], weights: Weights, missing: str, told: Callable[[], list[str]]
) -> None:
    with pytest.raises(DependencyViolationError) as caught:
        check(GRAFT.model_copy(update=changed), weights)
    assert caught.value.missing == missing
    assert told() == ["dependency_violation"]
