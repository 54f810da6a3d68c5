"""What a policy may command beside growth: another rate for a seed, and to go back to an earlier fence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from stopping import stop

import esper
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.errors import StageConflict
from esper.flow.places import InProcess
from esper.flow.result import Result
from esper.leyline.decisions import Decision, Pair, RateScale
from esper.leyline.reports import FieldReport
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RoundState
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.testing import telling, tiny_config, tiny_task

GROWTH = tiny_config().growth


class Meddling(HeuristicPolicy):
    """The heuristic, whose decisions a function may replace."""

    version = "meddling-1"

    def __init__(self, meddle: Callable[[RoundState, Decision], Decision]) -> None:
        super().__init__(GROWTH.candidates, GROWTH.replicas, GROWTH.ramp_steps)
        self._meddle = meddle

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        return self._meddle(state, super().decide(state, eligible, past))


def going_back(
    choose: Callable[[tuple[int, ...]], int], when: Callable[[RoundState], bool] = lambda state: state.fence >= 5
) -> Meddling:
    """Goes back once, the first time that `when` is true, to one of the fences with a checkpoint."""

    def meddle(state: RoundState, decision: Decision) -> Decision:
        if state.rollbacks or not when(state):
            return decision
        return decision.model_copy(update={"pairs": (), "hold": None, "go_back_to": choose(state.checkpoints)})

    return Meddling(meddle)


@pytest.mark.parametrize(
    ("policy", "tier"),
    [
        pytest.param(going_back(lambda fences: fences[-1], lambda state: state.fence == 13), "fast", id="the last"),
        pytest.param(going_back(lambda fences: fences[-2]), "full", id="the one before", marks=pytest.mark.slow),
        pytest.param(going_back(lambda fences: fences[0]), "full", id="the first", marks=pytest.mark.slow),
        pytest.param(
            going_back(lambda fences: fences[-1], lambda state: state.fence == state.last_fence),
            "fast",
            id="at the end",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_its_policy_takes_back_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, undisturbed: Result, policy: Meddling, tier: str
) -> None:
    """At a fence with open pairs, and at fences at which it is too late for another seed."""
    run_dir = tmp_path / "run"
    result = esper.run(tiny_task(), tiny_config(run__dir=str(run_dir)), on=InProcess(policy=policy))
    assert result.weights_sha256 == undisturbed.weights_sha256
    assert result.rollbacks == 1
    past = read_past(run_dir)
    assert past.generation == 2
    (back,) = [entry.body for entry in past.entries if entry.kind is RecordKind.ROLLED_BACK]
    (taken_over,) = [entry.body for entry in past.entries if entry.kind is RecordKind.SUPERSEDED]
    assert (back["tier"], back["fence"]) == (tier, taken_over["from_fence"])
    assert [e.body["fence"] for e in past.entries if e.kind is RecordKind.ROUND_ENDED] == list(range(1, 17))


@pytest.mark.slow
def test_a_policy_that_goes_back_again_and_again_ends_the_run(tmp_path: Path) -> None:
    def back(state: RoundState, decision: Decision) -> Decision:
        to = state.checkpoints[-1] if state.fence == 5 else None
        return decision.model_copy(update={"pairs": (), "hold": None, "go_back_to": to} if to is not None else {})

    run_dir = tmp_path / "run"
    with pytest.raises(StageConflict, match="from fence 5 10 times"):
        esper.run(tiny_task(), tiny_config(run__dir=str(run_dir)), on=InProcess(policy=Meddling(back)))
    past = read_past(run_dir)
    assert past.generation == 11


@pytest.mark.slow
def test_a_fence_without_a_checkpoint_is_refused_and_the_run_can_be_resumed(
    tmp_path: Path, undisturbed: Result
) -> None:
    run_dir = tmp_path / "run"
    policy = going_back(lambda fences: fences[-1] + 1)
    with pytest.raises(StageConflict, check=telling("go_back_to = ", "meddling-1: this fence has no checkpoint")):
        esper.run(tiny_task(), tiny_config(run__dir=str(run_dir)), on=InProcess(policy=policy))
    past = read_past(run_dir)
    assert (past.generation, past.rollbacks) == (1, 0)
    mended = InProcess(policy=Meddling(lambda _, decision: decision))
    assert esper.resume(run_dir, task=tiny_task(), on=mended).weights_sha256 == undisturbed.weights_sha256


def slowing(factor: float) -> Meddling:
    """Scales the rates of the first seed in the host, at every fence."""

    def meddle(state: RoundState, decision: Decision) -> Decision:
        first = [seed.seed_id for seed in state.seeds if seed.stage in IN_HOST][:1]
        return decision.model_copy(update={"rates": tuple(RateScale(seed_id=one, scale=factor) for one in first)})

    return Meddling(meddle)


@pytest.mark.slow
def test_a_rate_that_the_policy_scaled_lasts_over_a_stop_and_a_resume(tmp_path: Path, undisturbed: Result) -> None:
    def run(name: str, factor: float) -> Result:
        config = tiny_config(run__dir=str(tmp_path / name))
        return esper.run(tiny_task(), config, on=InProcess(policy=slowing(factor)))

    whole = run("whole", 0.5)
    entries = read_past(tmp_path / "whole").entries
    commands = [entry.body for entry in entries if entry.kind is RecordKind.COMMAND]
    moves = [entry.body for entry in entries if entry.kind is RecordKind.TRANSITION]
    grafted = next(move["fence"] for move in moves if move["after"] == "BLENDING")
    assert (
        sum(command["operation"] == "SCALE_RATE" for command in commands) == 17 - grafted
    )  # at every fence from there to the end
    assert whole.weights_sha256 != undisturbed.weights_sha256 == run("unscaled", 1.0).weights_sha256

    run_dir = tmp_path / "stopped"
    stop(11, tiny_task(), tiny_config(run__dir=str(run_dir)), on=InProcess(policy=slowing(0.5)))
    resumed = esper.resume(run_dir, task=tiny_task(), on=InProcess(policy=slowing(0.5)))
    assert resumed.weights_sha256 == whole.weights_sha256
