"""Refused candidates that train on beside the live host: judged again, adopted late, and the same bits after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from growing import THREE
from stopping import stop

import esper
from esper.archive.history import Past, read_past
from esper.archive.journal import RecordKind
from esper.errors import ConfigError, FaultInjected
from esper.faults import Fault, FaultSpec
from esper.flow.entry import run
from esper.flow.result import Result
from esper.kasmina.incubation.planning import draw_weights
from esper.leyline.commands import Candidate
from esper.leyline.reports import AdoptPlan
from esper.setup.survey import survey_of
from esper.testing import tiny_config, tiny_task
from esper.tolaria.trainer import never

LATE = {
    **THREE,
    "growth__entry": "adopt",
    "growth__beside": 2,
    "growth__replicas": 1,
    "growth__margin": 0.3,
    "growth__tests": "tournaments",
    "growth__max_tournaments": 2,
}
"""The gain of the best seed is above the margin after 60 steps, and not before."""


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run whose first tournament is refused, and whose winner is adopted at the second later look."""
    return run(tiny_task(), tiny_config(run__dir=str(tmp_path_factory.mktemp("late") / "run"), **LATE))


def bodies(past: Past, kind: RecordKind) -> list[dict[str, Any]]:
    return [entry.body for entry in past.entries if entry.kind is kind]


def same(one: Result, other: Result) -> None:
    assert one.weights_sha256 == other.weights_sha256
    assert one.twin_weights_sha256 == other.twin_weights_sha256
    assert one.incubator_gflops == other.incubator_gflops


@pytest.mark.slow
def test_a_refused_candidate_trains_on_and_is_adopted_as_if_it_had_trained_alone(late: Result) -> None:
    past = read_past(Path(late.run_dir))
    orders = bodies(past, RecordKind.INCUBATION_BEGUN)
    seen = [(one["fence"], one["due_fence"], one.get("goes_on_from"), one.get("keeps")) for one in orders[:3]]
    assert seen == [(1, 2, None, 2), (1, 3, 40, 2), (1, 4, 60, 2)]
    assert all(one.get("keeps") is None for one in orders[3:])  # a seed was accepted
    judged = [one for one in bodies(past, RecordKind.GATE) if one["gate"] == "G2" and one["fence"] <= 4]
    first = judged[-2]["seed_id"]
    assert [one["seed_id"] for one in judged].count(first) == 3
    assert judged[-1]["seed_id"] != first  # the second is culled when the first is adopted
    assert {check["at_least"] or check["above"] for check in judged[-2]["checks"]} >= {0.3}
    (plan,) = [AdoptPlan(**body) for body in bodies(past, RecordKind.ADOPTED)]
    assert (plan.seed_id, plan.fence, plan.graft.fence, plan.graft.start_step) == (first, 4, 1, 20)

    survey = survey_of(tiny_task(), tiny_config(**LATE))
    spec = next(spec for spec in survey.specs if spec.path == plan.graft.slot)
    candidate = Candidate(slot=spec.path, blueprint_id=plan.graft.blueprint_id, seed_id=first)
    blueprint = survey.blueprints.get(plan.graft.blueprint_id)
    weights = draw_weights(candidate, spec, blueprint, run_seed=0, fence=1)
    fork = survey.trainer(plan.graft.run_id, 1, "kasmina", never)
    fork.train_to(20)
    fork.graft(plan.graft, {plan.graft.weights_digest: weights})
    fork.train_to(80)
    assert fork.weights_sha256() == plan.after_sha256
    plain = run(tiny_task(), tiny_config(growth__enabled=False))
    assert late.twin_weights_sha256 == plain.weights_sha256
    assert esper.prove(late.run_dir, tiny_task()).divergence is None


@pytest.mark.slow
def test_a_run_that_is_drained_while_refused_candidates_train_on_is_resumed_with_the_same_bits(
    tmp_path: Path, late: Result
) -> None:
    stop(2, tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), **LATE))
    resumed = esper.resume(tmp_path / "run", tiny_task())
    same(resumed, late)
    assert resumed.resumes == 1


@pytest.mark.slow
def test_a_run_that_fails_while_refused_candidates_train_on_is_resumed_with_the_same_bits(
    tmp_path: Path, late: Result
) -> None:
    fault = FaultSpec(point="tolaria.step", fault=Fault.RAISE, step=70)
    config = tiny_config(run__dir=str(tmp_path / "run"), checkpoint__every_rounds=3, **LATE)
    with pytest.raises(FaultInjected):
        run(tiny_task(), config.model_copy(update={"faults": (fault,)}))
    same(esper.resume(tmp_path / "run", tiny_task()), late)


def test_candidates_may_train_on_only_if_their_forks_may_be_adopted() -> None:
    with pytest.raises(ConfigError) as refused:
        tiny_config(growth__beside=2)
    assert refused.value.field == "growth.beside"
    assert "growth.entry=graft" in str(refused.value)
