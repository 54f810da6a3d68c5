"""A run whose winning forks become the live host: the same bits however it is stopped, killed or taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
from adopting import SHORT, WHOLE
from stopping import stop

import esper
from esper.archive.history import Past, read_past
from esper.archive.journal import RecordKind
from esper.errors import FaultInjected
from esper.faults import Fault, FaultSpec
from esper.flow.entry import run
from esper.flow.places import InProcess
from esper.flow.result import Result
from esper.kasmina.incubation.planning import draw_weights
from esper.leyline.commands import Candidate
from esper.leyline.decisions import Decision
from esper.leyline.reports import AdoptPlan
from esper.leyline.state import RoundState
from esper.setup.survey import survey_of
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.testing import tiny_config, tiny_task
from esper.tolaria.trainer import never

POINTS = (
    "conductor.adoption_journaled",
    "tolaria.adoption_restored",
    *(
        pytest.param(f"conductor.adoption_{moment}", marks=pytest.mark.torture)
        for moment in ("before", "snapshot", "after")
    ),
)
"""In `make check` tests/test_same_bits.py kills a run at each of them."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of the tiny task that nobody disturbed. It adopts a winner and its replica."""
    return run(tiny_task(), tiny_config(run__dir=str(tmp_path_factory.mktemp("adopted") / "run"), **SHORT))


def adoptions(past: Past) -> list[AdoptPlan]:
    return [AdoptPlan(**entry.body) for entry in past.entries if entry.kind is RecordKind.ADOPTED]


def same(one: Result, other: Result) -> None:
    assert one.weights_sha256 == other.weights_sha256
    assert one.twin_weights_sha256 == other.twin_weights_sha256
    assert [(s.slot, s.blueprint, s.stage) for s in one.seeds] == [(s.slot, s.blueprint, s.stage) for s in other.seeds]


def test_the_twin_is_the_run_without_growth_and_a_repetition_gives_the_same_bits(adopted: Result) -> None:
    assert len(adoptions(read_past(Path(adopted.run_dir)))) == 2
    alone = esper.run(tiny_task(), tiny_config(growth__enabled=False))
    assert adopted.twin_weights_sha256 == alone.weights_sha256
    assert esper.prove(adopted.run_dir, tiny_task()).divergence is None


def test_an_adopted_run_ends_as_the_winning_fork_trained_alone_to_the_end(tmp_path: Path) -> None:
    config = tiny_config(run__dir=str(tmp_path / "run"), **(SHORT | {"growth__replicas": 1}))
    result = run(tiny_task(), config)
    (plan,) = adoptions(read_past(tmp_path / "run"))
    survey, graft = survey_of(tiny_task(), config), plan.graft
    spec = next(spec for spec in survey.specs if spec.path == graft.slot)
    candidate = Candidate(slot=graft.slot, blueprint_id=graft.blueprint_id, seed_id=graft.seed_id)
    blueprint = survey.blueprints.get(graft.blueprint_id)
    weights = draw_weights(candidate, spec, blueprint, run_seed=config.run.seed, fence=graft.fence)
    fork = survey.trainer(graft.run_id, 1, "kasmina", never)
    fork.train_to(graft.start_step)
    fork.graft(graft, {graft.weights_digest: weights})
    fork.train_to(survey.fence_steps[plan.fence])
    assert fork.weights_sha256() == plan.after_sha256
    fork.train_to(survey.total_steps)
    assert fork.weights_sha256() == result.weights_sha256


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_ends_in_its_second_adoption_is_resumed_with_the_same_bits(
    tmp_path: Path, adopted: Result, point: str
) -> None:
    spec = FaultSpec(point=point, fault=Fault.RAISE, passage=2)
    config = tiny_config(run__dir=str(tmp_path / "run"), **SHORT).model_copy(update={"faults": (spec,)})
    with pytest.raises(FaultInjected):
        run(tiny_task(), config)
    same(esper.resume(tmp_path / "run", tiny_task()), adopted)
    assert len(adoptions(read_past(tmp_path / "run"))) == 2


class TakenBack(HeuristicPolicy):
    """The heuristic, which goes back once over the second adoption, to the fence of the first or before it."""

    version = "taken-back-1"

    def __init__(self, to_fence: int) -> None:
        growth = tiny_config(**SHORT).growth
        super().__init__(growth.candidates, growth.replicas, growth.entry_ramp_steps)
        self._to_fence = to_fence

    def decide(self, state: RoundState, *given: object) -> Decision:
        decision = super().decide(state, *given)  # type: ignore[arg-type]
        if state.rollbacks or state.fence < 4:
            return decision
        return decision.model_copy(update={"pairs": (), "hold": None, "go_back_to": self._to_fence})


@pytest.mark.parametrize("to_fence", [0, 2, 3])
def test_a_run_that_goes_back_over_an_adoption_ends_with_the_same_bits(
    tmp_path: Path, adopted: Result, to_fence: int
) -> None:
    config = tiny_config(run__dir=str(tmp_path / "run"), checkpoint__keep=5, **SHORT)
    result = esper.run(tiny_task(), config, on=InProcess(policy=TakenBack(to_fence)))
    assert result.rollbacks == 1
    same(result, adopted)


def test_a_long_tournament_with_copies_and_placebos_is_adopted_with_the_same_bits_after_a_stop(tmp_path: Path) -> None:
    whole = run(tiny_task(), tiny_config(run__dir=str(tmp_path / "whole"), **WHOLE))
    (first, second) = adoptions(read_past(tmp_path / "whole"))
    assert (first.fence, first.graft.start_step, first.graft.copies) == (3, 20, 2)  # rounds of 20 steps
    stop(second.fence - 1, tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), **WHOLE))  # in the tournament
    resumed = esper.resume(tmp_path / "run", tiny_task())
    same(resumed, whole)
    assert resumed.finish == whole.finish
    assert resumed.ends_with == "live"
