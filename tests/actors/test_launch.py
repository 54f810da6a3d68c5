"""A run across processes is the run in one process: the same bits, the same story, and every failure typed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from damage import flip
from incidents import DAMAGED_CHECKPOINT, GATE_FAILURE, GRAFT, POLICY_TIMEOUT, the_trace_of
from stopping import stop

import esper
from actors.embedded_ray import EmbeddedRay
from esper import OnRay
from esper.archive.history import read_past
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import checkpoints_folder, faults_file
from esper.cli.run_command import say_failure
from esper.errors import (
    ActorLost,
    CallDeadlineExceeded,
    FaultInjected,
    PolicyDeadlineExceeded,
    TrainerRankLost,
)
from esper.faults import Firings
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.tally import Tally
from esper.ground.machine import is_alive
from esper.ground.tensors import state_digest
from esper.leyline.state import RoundState
from esper.testing import tiny_config, tiny_task
from esper.trace.paths import find


def story(run_dir: Path) -> list[tuple[RecordKind, Any]]:
    """The journal without what differs by run: ids, times, signatures; COMMITs come when a disk has done, so last."""
    entries, errors = read(run_dir / "journal-1.log")
    assert errors == []
    keys = ("gate", "fence", "before", "after", "checks", "losses", "reason")
    told = [(entry.kind, {k: v for k, v in entry.body.items() if k in keys}) for entry in entries]
    return sorted(told, key=lambda one: one[0] is RecordKind.CHECKPOINT_COMMITTED)


def compare(together: Result, alone: Result) -> None:
    """All bits and the whole story."""
    assert together.weights_sha256 == alone.weights_sha256
    assert together.twin_weights_sha256 == alone.twin_weights_sha256
    assert together.test_loss == alone.test_loss
    assert any(seed.stage == "FOSSILIZED" for seed in together.seeds)
    assert together.network is not None
    assert state_digest(together.network.state_dict()) == together.weights_sha256
    assert str(together.network) == str(alone.network)
    assert not any(module.training for module in together.network.modules())
    assert story(Path(together.run_dir)) == story(Path(alone.run_dir))


@pytest.mark.smoke
def test_actors_end_with_the_bits_of_one_process(launch_tiny: Any, undisturbed: Result) -> None:
    together = launch_tiny()
    compare(together, undisturbed)
    assert "fault_fired" not in together.as_json()
    the_trace_of(Path(together.run_dir), (*GRAFT, "esper round > await tamiyo > tamiyo decide"))
    the_trace_of(Path(together.run_dir), GATE_FAILURE)
    start = "esper start[role=conductor] >> actor start"
    the_trace_of(
        Path(together.run_dir), [f"{start}[role={role}]" for role in ("tolaria", "kasmina", "tamiyo", "emergency")]
    )
    assert find(Path(together.run_dir), "*!", count=0), "a span of an undisturbed run failed"
    assert [name for name in os.listdir("/dev/shm") if name.startswith(f"esper-word-{os.getpid()}-")] == []


@pytest.mark.torture
@pytest.mark.parametrize(("managers", "seed"), [(1, 1), (1, 2), (3, 0), (3, 1), (3, 2)])
def test_any_number_of_managers_ends_with_the_bits_of_one_process(
    launch_tiny: Any, tmp_path: Path, managers: int, seed: int
) -> None:
    alone = esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "alone"), run__seed=seed))
    together = launch_tiny(growth__managers=managers, run__seed=seed)
    compare(together, alone)
    assert together.steps == alone.steps


@pytest.mark.parametrize(
    ("fence", "damaged"), [(6, True), *(pytest.param(n, False, marks=pytest.mark.torture) for n in (0, 1, 6, 11, 15))]
)
def test_a_run_on_actors_that_was_stopped_ends_as_one_that_was_not(
    embedded: EmbeddedRay, tmp_path: Path, undisturbed: Result, fence: int, damaged: bool
) -> None:
    stop(fence, tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), on=OnRay(embedded))
    if damaged:
        flip(checkpoints_folder(tmp_path / "run") / f"fence-{fence}-g1.pt")
    result = esper.resume(tmp_path / "run", tiny_task(), on=OnRay(embedded))
    assert result.weights_sha256 == undisturbed.weights_sha256
    assert result.twin_weights_sha256 == undisturbed.twin_weights_sha256
    assert (result.test_loss, result.resumes) == (undisturbed.test_loss, 1)
    assert result.network is not None
    assert state_digest(result.network.state_dict()) == undisturbed.weights_sha256
    if damaged:  # the checkpoint before it was used
        the_trace_of(tmp_path / "run", DAMAGED_CHECKPOINT)


def test_the_death_of_an_idle_actor_is_noticed(launch_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ActorLost, match=r"tamiyo-spare: The actor is dead"):
        launch_tiny(progress=KillsAtFence(3, "tamiyo-spare"))
    assert read(tmp_path / "run" / "journal-1.log")[0][-1].body["error"] == "ActorLost"


class KillsAtFence(Quiet):
    """Kills an actor of the run from outside, when a fence has been passed."""

    def __init__(self, fence: int, name: str) -> None:
        self._fence, self._name = fence, name

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == self._fence:
            actor: Any = ray.get_actor(f"{self._name}-g1-{state.run_id[:8]}")
            pid = ray.get(actor.pid.remote())
            os.kill(pid, signal.SIGKILL)
            while is_alive(pid):
                pass


LATE_S = 600.0
"""Delay that makes an answer too late on any machine: its process is killed before the delay is over."""

DIED, SILENT, UNCAUSED = "ActorDiedError", "CallDeadlineExceeded", "NoneType"
ACTORS = {  # name: a point that it passes, at which passage, what its death is called
    "tolaria": ("tolaria.step", 30, TrainerRankLost),
    "tamiyo": ("tamiyo.decide", 1, ActorLost),
    "kasmina": ("kasmina.receive", 1, ActorLost),
    "manager-0": ("kasmina.step", 5, ActorLost),
    "emergency": ("emergency.pending", 2, ActorLost),
}
EVERY_WAY, EVERY_ACTOR = "tolaria", "is killed"
"""One actor fails in each way and each actor in one way; the rest of the matrix is in `make torture`.

A trainer that is killed has a test of its own, in which the run is then resumed.
"""


def failures() -> Iterator[Any]:
    """Each actor and each way to fail: the fault, and the error and cause that the caller gets."""
    for name, (point, passage, lost) in ACTORS.items():
        late = PolicyDeadlineExceeded if name == "tamiyo" else lost
        start = f"{point.partition('.')[0]}.start"
        ways = {
            "raises in its constructor": ({"point": start, "fault": "raise"}, FaultInjected, UNCAUSED),
            "dies in its constructor": ({"point": start, "fault": "kill"}, lost, DIED),
            "raises": ({"point": point, "fault": "raise"}, FaultInjected, UNCAUSED),
            "is killed": ({"point": point, "fault": "kill"}, lost, DIED),
            "hangs in Python": ({"point": point, "fault": "hang"}, late, SILENT),
            "hangs in C": ({"point": point, "fault": "hang_c"}, late, SILENT),
            "is frozen": ({"point": point, "fault": "stop"}, late, SILENT),
            "answers late": ({"point": point, "fault": "delay", "seconds": LATE_S}, late, SILENT),
        }
        for way, (armed, error, cause) in ways.items():
            when = {} if armed["point"] == start else {"passage": passage}
            marks = [] if (name == EVERY_WAY) != (way == EVERY_ACTOR) else [pytest.mark.torture]
            yield pytest.param({**armed, **when, "role": name}, error, cause, id=f"{name} {way}", marks=marks)


@pytest.mark.parametrize(("armed", "error", "cause"), list(failures()))
def test_failure_of_an_actor_is_typed_with_its_cause(
    launch_tiny: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    impatient: Any,
    armed: dict[str, Any],
    error: type[Exception],
    cause: str,
) -> None:
    run_dir = tmp_path / "run"
    impatient(armed["role"], Firings(faults_file(run_dir, 1)).all)
    overrides: dict[str, Any] = {"policy__deadline_s": 1.0} if error is PolicyDeadlineExceeded else {}
    if armed["role"] == "tolaria":
        overrides["growth__enabled"] = False  # two processes fewer to start
    with pytest.raises(error) as caught:
        launch_tiny(faults=[armed], **overrides)
    is_told(caught.value, run_dir, capsys, armed["role"], error, cause)


def test_a_run_whose_trainer_was_killed_reports_it_and_resumes_to_the_same_bits(
    launch_tiny: Any, embedded: EmbeddedRay, undisturbed: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainerRankLost) as caught:
        launch_tiny(faults=[{"point": "tolaria.step", "fault": "kill", "step": 109, "role": "tolaria"}])
    is_told(caught.value, launch_tiny.run_dir, capsys, "tolaria", TrainerRankLost, DIED)
    result = esper.resume(launch_tiny.run_dir, tiny_task(), on=OnRay(embedded))
    assert result.weights_sha256 == undisturbed.weights_sha256


def is_told(
    caught: BaseException,
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    role: str,
    error: type[Exception],
    cause: str,
) -> None:
    """The run reports its failure on standard output and in its journal, and no actor was restarted."""
    assert type(caught) is error
    assert type(caught.__cause__).__name__ == cause
    say_failure(caught, run_dir, as_json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["error"] == error.__name__
    assert told["message"] == str(caught)
    assert told["cause"].partition(":")[0] == (cause if cause != UNCAUSED else "")
    assert len(told["trace_id"]) == 32
    assert told["run_dir"] == str(run_dir)
    past = read_past(run_dir)
    assert past.restarts == 0
    fences = ", ".join(str(one.fence) for one in past.commits)
    assert told["kept"] == (
        f"journal, telemetry and checkpoints of fence {fences}" if fences else "journal and telemetry"
    )
    shows = f"esper trace show {run_dir} {told['trace_id']}"
    assert told["next"] == f"esper resume {run_dir}; to see what happened: {shows}"
    assert told["fault_fired"] is True
    entries, _ = read(run_dir / "journal-1.log")
    assert [entry.kind for entry in entries[-2:]] == [RecordKind.FAULT_FIRED, RecordKind.RUN_FAILED]
    assert entries[-2].body["actor"] == role
    assert (entries[-1].body["error"], len(entries[-1].body["trace_id"])) == (error.__name__, 32)
    if error is FaultInjected:
        assert f"raised in {role}" in caught.__notes__[0]
    assert not (run_dir / "summary.json").exists()


@pytest.mark.parametrize("fault", [pytest.param("hang", marks=pytest.mark.torture), "hang_c"])
def test_a_policy_beyond_its_deadline_is_killed(launch_tiny: Any, tmp_path: Path, fault: str) -> None:
    with pytest.raises(PolicyDeadlineExceeded) as caught:
        launch_tiny(faults=[{"point": "tamiyo.decide", "fault": fault}], policy__deadline_s=1.0)
    assert caught.value.elapsed_s >= 1.0
    assert isinstance(caught.value.__cause__, CallDeadlineExceeded)
    assert not is_alive(severe_event(tmp_path, "policy_timeout")["pid"])
    trace_id = the_trace_of(tmp_path / "run", (*POLICY_TIMEOUT, "esper round > await tamiyo!PolicyDeadlineExceeded"))
    assert read(tmp_path / "run" / "journal-1.log")[0][-1].body["trace_id"] == trace_id


def test_a_late_answer_within_patience_changes_nothing_and_a_fault_that_never_fired_is_reported(
    launch_tiny: Any, undisturbed: Result
) -> None:
    late = [
        {"point": "tolaria.round", "fault": "delay", "seconds": 0.5, "passage": 3},
        {"point": "kasmina.step", "fault": "delay", "seconds": 0.5, "passage": 7},
        {"point": "tamiyo.decide", "fault": "delay", "seconds": 0.5},
    ]
    never = {"point": "tolaria.step", "fault": "kill", "step": 10**6}
    result = launch_tiny(faults=[*late, never])
    assert result.weights_sha256 == undisturbed.weights_sha256
    assert result.fault_fired is False
    assert len(Firings(faults_file(launch_tiny.run_dir, 1)).all()) == len(late)


def severe_event(tmp_path: Path, name: str) -> dict[str, Any]:
    lines = (tmp_path / "run" / "telemetry" / "severe-events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    (event,) = [event for event in events if event["name"] == name]
    found: dict[str, Any] = event["fields"]
    return found
