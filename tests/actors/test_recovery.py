"""A dead actor is replaced and the run ends with the bits of an undisturbed one, or it stops with a typed error.

Every role in every phase: test_recovery_matrix.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

import esper
from actors import actor_start
from actors.embedded_ray import EmbeddedRay
from actors.remote import Process
from actors.shell import ActorSpec
from esper import OnRay
from esper.archive.history import read_past
from esper.archive.inspection import inspect_run
from esper.archive.journal import RecordKind
from esper.archive.run_directory import checkpoints_folder, faults_file
from esper.archive.summary import failure
from esper.config.joined import RunConfig
from esper.errors import (
    ActorLost,
    EsperError,
    FaultInjected,
    PlacementUnavailable,
    RestartIntensityExceeded,
    StartDeadlineExceeded,
    TaskError,
    TrainerRankLost,
)
from esper.faults import Fault, FaultSpec, Firings
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.tally import Tally
from esper.ground.machine import is_alive
from esper.leyline.state import RoundState
from esper.telemetry.events import LOG
from esper.testing import TinyHost, fail_with, tiny_config, tiny_task, until
from esper.tolaria.checkpoint_file import verify_all
from esper.trace.event_log import severe_events
from esper.trace.span_files import Skipped
from esper.trace.span_store import summaries


def in_torture(*values: Any) -> list[Any]:
    """Cells of a matrix that run in `make torture` only; another cell of their kind runs in `make check`."""
    return [pytest.param(value, marks=pytest.mark.torture) for value in values]


def same(result: Result, undisturbed: Result) -> None:
    for name in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps", "trainer_gflops", "incubator_gflops"):
        assert getattr(result, name) == getattr(undisturbed, name), name


class Scrapes(Quiet):
    """Scrapes the endpoint for Prometheus at every fence, until the actors have answered."""

    def __init__(self, path: Path) -> None:
        self._path, self.seen = path, dict[tuple[Any, ...], float]()

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence:
            until(
                lambda: self._scraped("esper_step_duration_seconds_count", ("role", "tolaria")) >= state.training.step
            )

    def _scraped(self, *series: Any) -> float:
        with urllib.request.urlopen(inspect_run(self._path)["prometheus"]) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        self.seen = {(one.name, *sorted(one.labels.items())): one.value for all_ in families for one in all_.samples}
        return self.seen[series]

    def check(self) -> None:
        """The trainer died in the round from step 140 on; its successor began at the checkpoint of that fence."""
        seen = self.seen
        steps = seen["esper_step_duration_seconds_count", ("role", "tolaria")]
        assert 320 <= steps <= 330  # of both processes: at least what the first answered last, and at most step 150
        assert seen["esper_actor_restarts_total", ("role", "tolaria")] == 1
        assert seen["esper_actor_restarts_total", ("role", "kasmina")] == 0
        for event in ("trainer_rank_lost", "actor_restarted", "fault_fired"):  # the last one right before the kill
            assert seen["esper_severe_events_total", ("event", event)] == 1
        for phase in ("decide", "stop", "start", "restore", "first_step"):
            assert seen["esper_recovery_duration_seconds_count", ("phase", phase)] == 1
        assert {role: seen["esper_actor_up", ("role", role)] for role in ("tolaria", "emergency", "kasmina")} == {
            "tolaria": 1,
            "emergency": 1,
            "kasmina": 1 + tiny_config().growth.managers,
        }
        assert seen["esper_decision_duration_seconds_count",] > 0  # in Tamiyo's process
        assert seen["esper_admission_duration_seconds_count",] > 0  # in Kasmina's


def test_a_dead_trainer_is_replaced_and_the_recovery_is_timed(
    launch_tiny: Any, tmp_path: Path, undisturbed: Result
) -> None:
    from incidents import RECOVERY, the_trace_of  # not above: Ray's workers import this file, and do not have tests/kit

    fault = {"point": "tolaria.step", "fault": "kill", "step": 150}
    watch = Scrapes(tmp_path / "run")
    result = launch_tiny(restarting=True, faults=[fault], telemetry__prometheus_port=0, progress=watch)
    same(result, undisturbed)
    watch.check()
    (recovery,) = result.recoveries
    assert (recovery.actors, result.restarts, result.rollbacks, result.resumes) == (("tolaria",), 1, 0, 0)
    assert (recovery.from_memory, result.fault_fired) == (False, True)
    assert recovery.first_step_s is not None
    past = read_past(tmp_path / "run")
    assert (past.restarts, past.rollbacks, past.generation) == (1, 0, 2)
    (told,) = [entry.body for entry in past.entries if entry.kind is RecordKind.RECOVERED]
    assert told == recovery.model_dump(mode="json")
    telemetry = tmp_path / "run" / "telemetry"
    events = [json.loads(line)["name"] for line in (telemetry / LOG).read_text().splitlines()]
    assert (events.count("trainer_rank_lost"), events.count("actor_restarted")) == (1, 1)
    roles = {file.name.split("-")[1] for file in telemetry.glob("spans-*.jsonl")}
    assert roles == {"conductor", "emergency", "kasmina", "manager", "tamiyo", "tolaria"}  # each writes its own
    started = "esper round > esper recover >> actor start[role=tolaria]"
    the_trace_of(tmp_path / "run", (*RECOVERY, started, "esper round > actor lost@trainer_rank_lost"))


@pytest.mark.torture
def test_a_compiled_run_that_is_killed_and_resumed_ends_with_the_bits_of_one_process(
    embedded: EmbeddedRay, tmp_path: Path
) -> None:
    def config(name: str) -> RunConfig:
        return tiny_config(run__dir=str(tmp_path / name), run__compile=True, run__compile_backend="aot_eager")

    whole = esper.run(tiny_task(), config("whole"))
    assert "FOSSILIZED" in [seed.stage for seed in whole.seeds]
    kills = FaultSpec(point="tolaria.step", fault=Fault.KILL, step=150)  # a seed is in the host
    from stopping import stop  # not above: Ray's workers import this file for its actors, and do not have tests/kit

    stop(11, tiny_task(), config("run").model_copy(update={"faults": (kills,)}), on=OnRay(embedded))
    result = esper.resume(tmp_path / "run", tiny_task(), on=OnRay(embedded))
    same(result, whole)
    assert (result.restarts, result.resumes) == (1, 1)


class Says:
    """A task whose trainer writes something as it is built."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self) -> TinyHost:
        print(self.what, file=sys.stderr, flush=True)
        return TinyHost()


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
            self.pids.append(ray.get(actor.pid.remote()))
        for pid in self.pids:
            os.kill(pid, self._number)
        while self._number == signal.SIGKILL and any(map(is_alive, self.pids)):
            pass


@pytest.mark.parametrize("name", ["tolaria", *in_torture("manager-0", "kasmina", "tamiyo-spare")])
def test_a_frozen_actor_is_killed_and_replaced_and_no_bit_differs(
    launch_tiny: Any, undisturbed: Result, impatient: Any, name: str
) -> None:
    frozen = Kills(4, name, number=signal.SIGSTOP)
    impatient(name, lambda: frozen.pids)
    result = launch_tiny(restarting=True, progress=frozen)
    same(result, undisturbed)
    assert name == "tamiyo-spare" or any(name in recovery.actors for recovery in result.recoveries)
    assert not any(map(is_alive, frozen.pids))


def test_an_actor_that_lives_though_reported_dead_ends_with_the_run(launch_tiny: Any) -> None:
    orphan = SaidToBeDead(4, "kasmina", number=signal.SIGSTOP)
    try:
        with pytest.raises(ActorLost):
            launch_tiny(progress=orphan)
        assert not any(map(is_alive, orphan.pids))
    finally:
        for pid in orphan.pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


class SaidToBeDead(Kills):
    """Makes Ray kill actors that are frozen, which Ray does not notice."""

    def fence(self, state: RoundState, tally: Tally) -> None:
        before = len(self.pids)
        super().fence(state, tally)
        if len(self.pids) > before:
            for name in self._names:
                ray.kill(ray.get_actor(f"{name}-g1-{state.run_id[:8]}"))


@pytest.mark.parametrize("point", ["tolaria.save", *in_torture("tolaria.step")])
def test_a_frozen_trainer_that_wakes_beside_its_replacement_changes_nothing(
    launch_tiny: Any,
    tmp_path: Path,
    undisturbed: Result,
    monkeypatch: pytest.MonkeyPatch,
    impatient: Any,
    point: str,
) -> None:
    kill, await_end = Process.kill, Process.await_end
    wakes = Wakes(faults_file(tmp_path / "run", 1))
    monkeypatch.setattr(Process, "kill", lambda self: None if wakes.is_frozen(self.pid) else kill(self))
    monkeypatch.setattr(Process, "await_end", lambda self: None if wakes.is_frozen(self.pid) else await_end(self))
    impatient("tolaria", Firings(faults_file(tmp_path / "run", 1)).all)
    fault = {"point": point, "fault": "stop", "round": 5}
    try:
        result = launch_tiny(restarting=True, faults=[fault], progress=wakes)
    finally:
        os.kill(wakes.pid, signal.SIGKILL)
    assert wakes.woken_at == 8
    same(result, undisturbed)
    assert [recovery.actors for recovery in result.recoveries] == [("tolaria",)]
    past = read_past(tmp_path / "run")
    rounds = [entry.body["fence"] for entry in past.entries if entry.kind is RecordKind.ROUND_ENDED]
    assert rounds == list(range(1, 17))
    folder = checkpoints_folder(tmp_path / "run")
    assert all(verdict["ok"] for verdict in verify_all(folder, past.commits))
    assert {written.generation for written in past.commits if written.fence > 5} == {2}


class Wakes(Quiet):
    """Lets a process that a fault has stopped go on, some fences after its successor has begun."""

    def __init__(self, file: Path) -> None:
        self._firings, self.woken_at = Firings(file), 0

    @property
    def pid(self) -> int:
        return self._firings.all()[0].pid

    def is_frozen(self, pid: int) -> bool:
        return pid in (firing.pid for firing in self._firings.all())

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == 8:
            os.kill(self.pid, signal.SIGCONT)
            self.woken_at = state.fence


def test_no_room_for_a_replacement_stops_the_run_and_names_the_resources(
    launch_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hogs = Hogs(4, "manager-0")
    short_of(5.0, lambda _: hogs.pids, monkeypatch)
    with pytest.raises(PlacementUnavailable, match=r"manager-0 .*no room.*asked: CPU 1; there: CPU 8 \(0 free\)"):
        launch_tiny(restarting=True, progress=hogs)
    hogs.end()
    assert read_past(tmp_path / "run").entries[-1].body["error"] == "PlacementUnavailable"


def short_of(deadline_s: float, meant: Callable[[ActorSpec], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the start of successors that cannot come up given up soon, and no other start."""
    patient = actor_start.await_ready

    def await_ready(spec: ActorSpec, actor: Any, began_s: float, limit_s: float, look: Any) -> int:
        return patient(spec, actor, began_s, deadline_s if meant(spec) else limit_s, look)

    monkeypatch.setattr(actor_start, "await_ready", await_ready)


class Hogs(Kills):
    """Takes every core that is free, and then that of the actor that is killed."""

    def fence(self, state: RoundState, tally: Tally) -> None:
        if state.fence == self._fence and not self.pids:
            self._hogs = [self._hog(ray.available_resources()["CPU"])]  # type: ignore[no-untyped-call]  # Ray's
            super().fence(state, tally)
            self._hogs.append(self._hog(1.0))

    def _hog(self, cpus: float) -> Any:
        actor: Any = ray.remote(Sits).options(num_cpus=cpus, max_restarts=0).remote()
        ray.get(actor.sits.remote())
        return actor

    def end(self) -> None:
        for hog in self._hogs:
            ray.kill(hog)


class Sits:
    def sits(self) -> bool:
        return True


@pytest.mark.parametrize("deaths", [1, *in_torture(2)])
def test_one_death_too_many_stops_the_run_with_its_cause_and_last_output(
    launch_tiny: Any, tmp_path: Path, deaths: int
) -> None:
    fault = {"point": "tolaria.round", "fault": "kill", "round": 3, "times": 5}
    limits = {"supervision__deaths": deaths, "supervision__without_progress": 9}
    noisy = tiny_task(model=Says("what stands on standard error"))
    with pytest.raises(
        RestartIntensityExceeded, match=rf"death {deaths + 1} of tolaria .*supervision\.deaths"
    ) as caught:
        launch_tiny(restarting=True, faults=[fault], task=noisy, **limits)
    assert isinstance(caught.value.__cause__, TrainerRankLost)
    past = read_past(tmp_path / "run")
    assert past.restarts == deaths
    assert past.entries[-1].body["error"] == "RestartIntensityExceeded"
    assert past.commits[-1].fence in (1, 2)  # that of fence 2 was being written
    assert "what stands on standard error" in "".join(failure(caught.value)["notes"])
    for told in (entry.body for entry in past.entries if entry.kind is RecordKind.ACTOR_RESTARTED):
        assert "what stands on standard error" in told["notes"][0]
    assert "what stands on standard error" in "".join(past.entries[-1].body["notes"])


def test_a_manager_that_dies_again_and_again_at_one_fence_stops_the_run(launch_tiny: Any, tmp_path: Path) -> None:
    fault = {"point": "kasmina.step", "fault": "kill", "step": 52, "times": 9}
    with pytest.raises(RestartIntensityExceeded, match=r"death 3 of manager-0 at fence (\d+) with no later") as caught:
        launch_tiny(restarting=True, faults=[fault], supervision__deaths=9, supervision__without_progress=3)
    past = read_past(tmp_path / "run")
    fences = {entry.body["fence"] for entry in past.entries if entry.kind is RecordKind.ACTOR_RESTARTED}
    passed = max(entry.body["fence"] for entry in past.entries if entry.kind is RecordKind.CHECKPOINT_BEGUN)
    assert (past.restarts, fences) == (2, {passed})
    events = severe_events(tmp_path / "run", Skipped())
    restarted = [one.trace_id for one in events if one.name == "actor_restarted"]
    assert len(restarted) == 2
    assert set(restarted) <= {one.trace_id for one in summaries(tmp_path / "run").traces}
    assert f"at fence {passed} with" in str(caught.value)


MANAGER_DIES = {"point": "kasmina.step", "fault": "kill", "step": 32}
"""In the first tournament, in which there is no twin yet, so that the main thread asks no manager for anything."""
BUSY = {"point": "tolaria.step", "fault": "stop", "step": 38}
"""The main thread waits for the trainer meanwhile, so that another one learns of the manager's death first."""


def let_go(run_dir: Path) -> None:
    """Let the trainer go on that `BUSY` stops."""

    def stopped() -> list[int]:
        firings = Firings(faults_file(run_dir, 1)).all()
        return [one.pid for one in firings if one.fault is Fault.STOP and is_stopped(one.pid)]

    until(stopped)
    os.kill(stopped()[0], signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


POLICY_DIES = {"point": "tamiyo.decide", "fault": "kill", "passage": 3, "role": "tamiyo"}


@pytest.mark.torture
def test_the_spare_replaces_a_dead_policy_and_a_new_spare_starts(launch_tiny: Any, undisturbed: Result) -> None:
    watch = Looks()
    same(launch_tiny(restarting=True, faults=[POLICY_DIES], progress=watch), undisturbed)
    assert watch.answered == {"tamiyo-spare-g1", "tamiyo-spare-g2"}


def test_a_new_spare_that_dies_as_it_starts_ends_no_other_actor(
    launch_tiny: Any, tmp_path: Path, undisturbed: Result
) -> None:
    """The policy that has just stepped in was the spare before."""
    watch = Looks()
    again = {"point": "tamiyo.start", "fault": "kill", "role": "tamiyo-spare", "generation": 2}
    result = launch_tiny(restarting=True, faults=[POLICY_DIES, again], progress=watch)
    same(result, undisturbed)
    assert watch.answered == {"tamiyo-spare-g1", "tamiyo-spare-g2 again"}
    assert [recovery.actors for recovery in result.recoveries] == [("tamiyo",)]
    assert (result.restarts, read_past(tmp_path / "run").generation) == (2, 2)


class Looks(Quiet):
    """Which processes of Tamiyo answer at a late fence, by the names that they were started with."""

    def __init__(self) -> None:
        self.answered = set[str]()

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == 12:
            for name in ("tamiyo-g1", "tamiyo-g2", "tamiyo-spare-g1", "tamiyo-spare-g2"):
                for attempt, told in (("", name), ("-2", f"{name} again")):
                    with suppress(ValueError, ray.exceptions.RayActorError):  # there is none of this name, or none now
                        actor: Any = ray.get_actor(f"{name}-{state.run_id[:8]}{attempt}")
                        ray.get(actor.pid.remote())
                        self.answered.add(told)


@pytest.mark.parametrize("trainer", ["dies", *in_torture("lives")])
@pytest.mark.parametrize(
    "error", [TaskError("task", "mine.py", "gone"), *in_torture(PlacementUnavailable("kasmina", "no room"))]
)
def test_a_manager_that_cannot_be_replaced_stops_the_run_whichever_thread_finds_out(
    launch_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: EsperError, trainer: str
) -> None:
    await_ready, begun, spawn = actor_start.await_ready, list[Any](), actor_start.spawn
    failed = threading.Event()

    def noted(spec: ActorSpec, attempt: int) -> Any:
        begun.append(spawn(spec, attempt))
        return begun[-1]

    def failing(spec: ActorSpec, *how: Any) -> int:
        if threading.current_thread() is threading.main_thread():
            return await_ready(spec, *how)
        failed.set()
        let_go(tmp_path / "run")
        return fail_with(error)

    monkeypatch.setattr(actor_start, "spawn", noted)
    monkeypatch.setattr(actor_start, "await_ready", failing)
    faults = [MANAGER_DIES, BUSY]
    if trainer == "dies":
        faults.append({"point": "tolaria.step", "fault": "kill", "step": 39})
    with pytest.raises(type(error), match=re.escape(str(error))):
        launch_tiny(restarting=True, faults=faults)
    assert failed.is_set()
    assert read_past(tmp_path / "run").entries[-1].body["error"] == type(error).__name__
    for actor in begun:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.pid.remote())


@pytest.mark.parametrize(
    "deaths",
    [
        ["manager-1", "tamiyo-spare", "tolaria"],
        *in_torture(["manager-0"], ["manager-1", "tolaria"], ["manager-0", "manager-1", "manager-2"]),
    ],
)
def test_actors_that_die_together_are_replaced_together_idle_ones_too(
    launch_tiny: Any, undisturbed: Result, deaths: list[str]
) -> None:
    killer = Kills(4, *deaths)
    result = launch_tiny(restarting=True, progress=killer, growth__managers=3)
    same(result, undisturbed)
    died = sorted(name for recovery in result.recoveries for name in recovery.actors)
    assert (died, result.restarts) == (deaths, len(deaths))


def test_ctrl_c_while_a_manager_is_being_replaced_leaves_nothing(
    launch_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    spawn, await_ready = actor_start.spawn, actor_start.await_ready

    def noted(spec: ActorSpec, attempt: int) -> Any:
        begun.append(spawn(spec, attempt))
        return begun[-1]

    def interrupted(spec: ActorSpec, *how: Any) -> int:
        if threading.current_thread() is not threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)
        return await_ready(spec, *how)

    monkeypatch.setattr(actor_start, "spawn", noted)
    monkeypatch.setattr(actor_start, "await_ready", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell that runs the tests may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            launch_tiny(restarting=True, faults=[MANAGER_DIES, BUSY])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) == 7  # six actors, and the manager's successor
    for actor in begun:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.pid.remote())


FIRST = {"point": "kasmina.receive", "fault": "kill", "role": "kasmina"}
AGAIN = {"point": "kasmina.start", "role": "kasmina", "generation": 2}


@pytest.mark.parametrize(("fault", "expected"), [("raise", FaultInjected), ("hang", StartDeadlineExceeded)])
def test_a_replacement_that_does_not_come_up_stops_the_run(
    launch_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, expected: type[Exception]
) -> None:
    if expected is StartDeadlineExceeded:
        short_of(5.0, lambda spec: spec.name == "kasmina" and spec.generation == 2, monkeypatch)
    with pytest.raises(expected):
        launch_tiny(restarting=True, faults=[FIRST, {**AGAIN, "fault": fault}])
    assert read_past(tmp_path / "run").generation == 2


def test_a_death_during_a_restart_is_restarted_too(launch_tiny: Any, undisturbed: Result) -> None:
    result = launch_tiny(restarting=True, faults=[FIRST, {**AGAIN, "fault": "kill"}])
    same(result, undisturbed)
    assert (result.restarts, len(result.recoveries), result.fault_fired) == (2, 1, True)


def test_an_error_declared_as_a_death_restarts_and_counts(launch_tiny: Any, undisturbed: Result) -> None:
    fault = {"point": "tolaria.round", "fault": "raise", "round": 3}
    result = launch_tiny(restarting=True, faults=[fault], failure_policy__FaultInjected="restart")
    same(result, undisturbed)
    assert [recovery.error for recovery in result.recoveries] == ["FaultInjected"]
