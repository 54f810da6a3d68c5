"""A dead actor is replaced and the run ends with the bits of one that nobody disturbed; or it stops, typed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

import esper.loop
from actors.handles import is_gone
from esper.errors import (
    FaultInjected,
    PlacementUnavailable,
    RestartIntensityExceeded,
    TrainerRankLost,
)
from esper.history import read_past
from esper.journal import Kind
from esper.leyline.state import RoundState
from esper.progress import Quiet
from esper.summary import Result, Tally
from esper.testing import tiny_config, tiny_task

MOMENTS = {  # role: phase of a round -> the point that is passed there, at which passage
    "tolaria": {
        "before the first fence": ("tolaria.step", 1),
        "in a round": ("tolaria.step", 150),
        "as a round begins": ("tolaria.round", 4),
        "in a graft": ("tolaria.apply", 1),
        "in the first save": ("tolaria.save", 1),
        "in a save": ("tolaria.save", 6),
    },
    "tamiyo": {"in a decision": ("tamiyo.decide", 3)},
    "kasmina": {"in a command": ("kasmina.receive", 2)},
    "manager-0": {"in an incubation": ("kasmina.step", 300), "as it begins": ("kasmina.step", 1)},
    "emergency": {"at the first fence": ("emergency.pending", 1), "at a fence": ("emergency.pending", 7)},
}
QUICK = {("tolaria", "in a round"), ("manager-0", "in an incubation")}


def cases() -> Iterator[Any]:
    for name, phases in MOMENTS.items():
        for phase, (point, passage) in phases.items():
            marks = [] if (name, phase) in QUICK else [pytest.mark.slow]
            yield pytest.param(name, point, passage, marks=marks, id=f"{name}, {phase}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return esper.loop.run(tiny_task(), tiny_config(run__dir=str(tmp_path_factory.mktemp("alone") / "run")))


def same(result: Result, alone: Result) -> None:
    for name in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps", "trainer_gflops", "incubator_gflops"):
        assert getattr(result, name) == getattr(alone, name), name


@pytest.mark.parametrize(("name", "point", "passage"), list(cases()))
def test_an_actor_that_is_killed_is_replaced_and_no_bit_differs(
    launch_tiny: Any, tmp_path: Path, alone: Result, name: str, point: str, passage: int
) -> None:
    fault = {"point": point, "fault": "kill", "passage": passage, "role": name}
    result = launch_tiny(restarting=True, faults=[fault])
    same(result, alone)
    (recovery,) = result.recoveries
    assert (recovery.actors, result.restarts, result.rollbacks, result.resumes) == ((name,), 1, 0, 0)
    assert recovery.from_memory is (name != "tolaria")
    assert recovery.first_step_s is not None
    assert result.fault_fired is True
    past = read_past(tmp_path / "run")
    assert (past.restarts, past.rollbacks, past.generation) == (1, 0, 2)
    (told,) = [entry.body for entry in past.entries if entry.kind is Kind.RECOVERED]
    assert told == recovery.model_dump(mode="json")


def test_the_spare_steps_in_for_a_dead_policy_and_there_is_a_new_spare(launch_tiny: Any, alone: Result) -> None:
    watch = Looks()
    fault = {"point": "tamiyo.decide", "fault": "kill", "passage": 3, "role": "tamiyo"}
    same(launch_tiny(restarting=True, faults=[fault], progress=watch), alone)
    assert watch.found == {"tamiyo-spare-g1", "tamiyo-spare-g2"}


class Looks(Quiet):
    """Which processes of Tamiyo answer at a late fence, by the names that they were started with."""

    def __init__(self) -> None:
        self.found = set[str]()

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == 12:
            for name in ("tamiyo-g1", "tamiyo-g2", "tamiyo-spare-g1", "tamiyo-spare-g2"):
                with suppress(ValueError):  # there is none of this name
                    actor: Any = ray.get_actor(f"{name}-{state.run_id[:8]}")
                    ray.get(actor.pid.remote(), timeout=10)
                    self.found.add(name)


@pytest.mark.slow
def test_several_at_once_and_one_that_nobody_asks_are_all_replaced(launch_tiny: Any, alone: Result) -> None:
    killer = Kills(4, "tolaria", "manager-0", "tamiyo-spare")
    result = launch_tiny(restarting=True, progress=killer)
    same(result, alone)
    assert {name for recovery in result.recoveries for name in recovery.actors} == {
        "tolaria",
        "manager-0",
        "tamiyo-spare",
    }


class Kills(Quiet):
    """Kills actors of the first generation from outside, when a fence has been held."""

    def __init__(self, fence: int, *names: str, number: int = signal.SIGKILL) -> None:
        self._fence, self._names, self._number = fence, names, number
        self.pids: list[int] = []

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence != self._fence or self.pids:
            return
        for name in self._names:
            actor: Any = ray.get_actor(f"{name}-g1-{state.run_id[:8]}")
            self.pids.append(ray.get(actor.pid.remote(), timeout=10))
        for pid in self.pids:
            os.kill(pid, self._number)
        while self._number == signal.SIGKILL and not all(map(is_gone, self.pids)):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tolaria", "manager-0", "kasmina", "tamiyo-spare"])
def test_a_frozen_actor_is_ended_and_replaced_and_what_it_did_changes_nothing(
    launch_tiny: Any, alone: Result, name: str
) -> None:
    frozen = Kills(4, name, number=signal.SIGSTOP)
    result = launch_tiny(restarting=True, progress=frozen, ray__collective_timeout_s=5.0)
    same(result, alone)
    assert name == "tamiyo-spare" or any(name in recovery.actors for recovery in result.recoveries)
    assert all(map(is_gone, frozen.pids))


@pytest.mark.slow
@pytest.mark.parametrize("deaths", [1, 2])
def test_one_death_too_many_stops_the_run_from_its_cause(launch_tiny: Any, tmp_path: Path, deaths: int) -> None:
    fault = {"point": "tolaria.round", "fault": "kill", "round": 3, "times": 5}
    with pytest.raises(
        RestartIntensityExceeded, match=rf"death {deaths + 1} of tolaria .*supervision\.deaths"
    ) as caught:
        launch_tiny(restarting=True, faults=[fault], supervision__deaths=deaths, supervision__without_progress=9)
    assert isinstance(caught.value.__cause__, TrainerRankLost)
    past = read_past(tmp_path / "run")
    assert past.restarts == deaths
    assert past.entries[-1].body["error"] == "RestartIntensityExceeded"
    assert past.commits[-1].fence in (1, 2)  # that of fence 2 was being written


@pytest.mark.slow
def test_deaths_at_one_fence_without_progress_stop_the_run(launch_tiny: Any) -> None:
    fault = {"point": "tolaria.round", "fault": "kill", "round": 3, "times": 5}
    with pytest.raises(RestartIntensityExceeded, match=r"at fence 2 with no later one passed"):
        launch_tiny(restarting=True, faults=[fault], supervision__deaths=9, supervision__without_progress=3)


FIRST = {"point": "kasmina.receive", "fault": "kill", "role": "kasmina"}
AGAIN = {"point": "kasmina.start", "role": "kasmina", "generation": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "expected"), [("raise", FaultInjected), ("hang", PlacementUnavailable)])
def test_a_successor_that_does_not_come_up_stops_the_run(
    launch_tiny: Any, tmp_path: Path, fault: str, expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        launch_tiny(restarting=True, faults=[FIRST, {**AGAIN, "fault": fault}], ray__start_deadline_s=30.0)
    assert read_past(tmp_path / "run").generation == 2


@pytest.mark.slow
def test_a_death_while_it_is_started_again_is_a_death_like_any_other(launch_tiny: Any, alone: Result) -> None:
    result = launch_tiny(restarting=True, faults=[FIRST, {**AGAIN, "fault": "kill"}])
    same(result, alone)
    assert (result.restarts, result.fault_fired) == (1, True)


@pytest.mark.slow
def test_a_death_while_it_is_started_again_counts(launch_tiny: Any) -> None:
    with pytest.raises(RestartIntensityExceeded, match="death 2 of kasmina"):
        launch_tiny(restarting=True, faults=[FIRST, {**AGAIN, "fault": "kill"}], supervision__deaths=1)


@pytest.mark.slow
def test_what_is_declared_as_a_death_is_answered_by_a_restart_and_counted(launch_tiny: Any, alone: Result) -> None:
    fault = {"point": "tolaria.round", "fault": "raise", "round": 3}
    result = launch_tiny(restarting=True, faults=[fault], failure_policy__FaultInjected="restart")
    same(result, alone)
    assert [recovery.error for recovery in result.recoveries] == ["FaultInjected"]
