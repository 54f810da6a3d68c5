"""The random schedule of drill 29: what is drawn, and an episode that fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from drills.catalogue.random_schedule import RANDOM_SCHEDULE
from drills.drill_context import Soak
from drills.drill_runner import DrillRunner
from drills.fault_schedule import Damage, End, Leg, Where, episode
from drills.task_under_drill import TaskUnderDrill
from drills.undisturbed import Undisturbed
from esper.tolaria.trainer import Trainer


@pytest.fixture(scope="module")
def runner() -> Iterator[DrillRunner]:
    with DrillRunner(TaskUnderDrill.tiny(seed=0)) as runner:
        yield runner


@pytest.fixture(scope="module")
def moments(runner: DrillRunner) -> Undisturbed:
    return runner.undisturbed()


@pytest.mark.slow
def test_a_schedule_repeats_and_in_time_breaks_everything(moments: Undisturbed) -> None:
    drawn = [episode(7, number, moments) for number in range(300)]
    assert drawn[299] == episode(7, 299, moments) != episode(8, 299, moments)
    legs = [leg for one in drawn for leg in one.legs]
    assert {leg.end for leg in legs} == set(End)
    assert {leg.where for leg in legs} == set(Where)
    assert {leg.damage for leg in legs} == {None, *Damage}
    killed = {fault.point for leg in legs for fault in leg.kills}
    assert killed == {
        *("tolaria.step", "tolaria.round", "tolaria.save", "tolaria.apply"),
        *("kasmina.receive", "kasmina.step", "tamiyo.decide", "emergency.pending"),
    }
    assert any(leg.sink_down for leg in legs)
    for one in drawn:
        assert [leg.end is End.DONE for leg in one.legs] == [False] * (len(one.legs) - 1) + [True]
        begin = 0
        for leg in one.legs:
            timed = [_round(fault.round, fault.step, moments) for fault in leg.faults]
            assert all(fence is None or begin < fence <= leg.fence for fence in timed), str(one)
            begin = leg.fence


def _round(fence: int | None, step: int | None, moments: Undisturbed) -> int | None:
    if step is None:
        return fence
    return next(one for one in range(1, moments.summary.rounds + 1) if step < moments.step_at(one))


@pytest.mark.slow
def test_an_episode_with_other_bits_fails_the_drill_and_says_how_to_repeat_it(
    runner: DrillRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: a restore changes a weight a little."""
    leg = Leg(Where.HERE, End.STOPPED, 9)
    end = Leg(Where.HERE, End.DONE, 16)
    drawn = replace(episode(0, 0, runner.undisturbed()), legs=(leg, end))
    monkeypatch.setattr("drills.catalogue.random_schedule.episode", lambda *_: drawn)
    monkeypatch.setattr(runner, "_soak", Soak(only=True))
    sound = runner.run_one(replace(RANDOM_SCHEDULE, place="in process"))
    assert (sound.passed, sound.why) == (True, "")
    assert "repeat it: --seed 0 --episode 0" in sound.notes[0]

    right = Trainer.restore

    def spoilt(self: Trainer, snapshot: Any, generation: int) -> None:
        right(self, snapshot, generation)
        with torch.no_grad():
            next(self.host.parameters()).add_(1e-6)

    monkeypatch.setattr(Trainer, "restore", spoilt)
    outcome = runner.run_one(replace(RANDOM_SCHEDULE, place="in process"))
    assert not outcome.passed
    assert "the bits of the undisturbed run; found other bits" in outcome.why
