"""Signals that steer a run: HALT ends it at the next step with its reason, CONSERVATIVE lets nothing new germinate."""

from __future__ import annotations

import json
import os
import signal as os_signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from hooks import HUNG, hook
from torch import Tensor

from actors.component_handles import emergency_handle
from actors.embedded_ray import EmbeddedRay
from actors.emergency_actor import ADDRESS
from actors.publisher import Publisher
from esper import OnRay, run
from esper.archive.history import read_past
from esper.archive.journal import Entry, RecordKind, read
from esper.archive.run_directory import emergency_folder, faults_file, telemetry_folder
from esper.config.joined import RunConfig
from esper.emergency.conductor_inbox import ConductorInbox
from esper.emergency.emergency_service import QUEUE, EmergencyService
from esper.emergency.hosting import HostedEmergency, hosted
from esper.emergency.queue import HALT_PLACES
from esper.emergency.reading import read_queue
from esper.emergency.word import EmergencyWord
from esper.errors import ActorLost, EmergencyQueueFull, EmergencyStop, EmergencyUnavailable, all_notes
from esper.faults import Firings
from esper.flow.crew import Components, OneProcess
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.runner import Conductor
from esper.flow.stopping import Drain
from esper.flow.tally import Tally
from esper.ground.clock import SystemClock
from esper.leyline.signals import EmergencySignal, Level
from esper.leyline.state import RoundState
from esper.setup.assembly import RunKey, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.setup.survey import Survey, survey_of
from esper.task import Task
from esper.telemetry.events import LOG
from esper.testing import telling, tiny_config, tiny_task, until
from esper.user_code.task_reference import Reference


def signal(level: Level, signal_id: str = "signal-1", reason: str = "the room is on fire") -> EmergencySignal:
    return EmergencySignal.sealed(
        signal_id=signal_id,
        run_id="run",
        generation=1,
        level=level,
        origin="operator",
        reason=reason,
        issued_at=datetime.now(UTC),
    )


class LocalActor:
    """A `Remote` whose emergency service is in this process. With `gone` its actor is dead."""

    def __init__(self) -> None:
        self.service: HostedEmergency | None = None
        self.gone = False
        self.before: defaultdict[str, Callable[[], None]] = defaultdict(lambda: lambda: None)
        """What happens just before a call of each method."""

    def ask(self, method: str, *arguments: object, group: str | None = None) -> Any:
        del group
        if self.gone:
            raise ActorLost("emergency", "killed")
        self.before[method]()
        return getattr(self.service, method)(*arguments)

    def publish(self, found: EmergencySignal) -> None:
        """Publish, as any thread may."""
        assert self.service is not None
        self.service.publish(found)


@pytest.fixture
def local() -> LocalActor:
    return LocalActor()


@pytest.fixture
def run_here(local: LocalActor, tmp_path: Path) -> Callable[..., Result]:
    """A run in this process: its trainer reads an emergency word, and its conductor reads the signals of `local`."""

    @contextmanager
    def up(survey: Survey, key: RunKey, path: Path) -> Iterator[Components]:
        settings, told = survey.config.emergency, {"run_id": key.run_id, "generation": key.generation}
        with EmergencyWord.in_memory() as word:
            service = EmergencyService.open(emergency_folder(path), word, settings, environment={}, **told)
            with hosted(service, 0.0, lambda _: None) as local.service:
                yield Components(
                    trainer=make_trainer(survey, key, word.halted),
                    tamiyo=make_tamiyo(survey, key, SystemClock()),
                    kasmina=make_kasmina(survey, key, SystemClock()),
                    incubator=make_incubator(survey, key, word.halted),
                    inbox=ConductorInbox(emergency_handle(local, 10.0)),
                    crew=OneProcess(),
                )

    def here(task: Task | None = None, progress: Quiet | None = None, **overrides: Any) -> Result:
        task = task or tiny_task()
        survey = survey_of(task, tiny_config(run__dir=str(tmp_path / "run"), **overrides))
        if isinstance(task.loss, AtStep):
            task.loss.begun = True
        return Conductor("", up, Reference(), progress or Quiet(), SystemClock(), Drain(), "scripted").begin(survey)

    return here


def entries(tmp_path: Path) -> list[Entry]:
    found, errors = read(tmp_path / "run" / "journal-1.log")
    assert errors == []
    return found


def bodies(tmp_path: Path, kind: RecordKind) -> list[dict[str, Any]]:
    return [entry.body for entry in entries(tmp_path) if entry.kind is kind]


def waiting(tmp_path: Path) -> list[str]:
    """Signals that the queue on the disk still has for somebody."""
    return [held.signal.signal_id for held in read_queue(emergency_folder(tmp_path / "run") / QUEUE).waiting()]


class AtStep:
    """A loss that does something while an optimizer step of the run, counted from 1, is being done."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.step, self.begun = step, False
        self.act = ContextVar("act", default=act)  # out of sight of the search for state that no checkpoint keeps
        self.steps = list[int]()  # it only grows, as a log does: a counter that no checkpoint keeps is refused

    def __call__(self, output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        if torch.is_grad_enabled() and self.begun:  # the survey takes steps too
            self.steps.append(len(self.steps) + 1)
            if self.steps[-1] == self.step:
                self.act.get()()
        return torch.nn.functional.cross_entropy(output, target, reduction=reduction)


class AtFence(Quiet):
    """Does something when a fence has been passed."""

    def __init__(self, fence: int, act: Callable[[], None]) -> None:
        self._fence, self._act = fence, act

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == self._fence:
            self._act()


# -- HALT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 29, 40, 320], ids=["first", "in a round", "its last", "last of all"])
def test_a_halt_ends_training_at_the_first_boundary_that_follows_with_its_reason_and_id(
    run_here: Any, local: LocalActor, tmp_path: Path, step: int
) -> None:
    loss = AtStep(step, lambda: local.publish(signal(Level.HALT)))
    with pytest.raises(EmergencyStop) as stop:
        run_here(tiny_task(loss=loss), growth__enabled=False)
    assert (stop.value.step, len(loss.steps)) == (step, step)
    assert (stop.value.reason, stop.value.signal_id) == ("the room is on fire", "signal-1")
    assert (stop.value.__cause__, all_notes(stop.value)) == (None, ())  # an orderly stop has one end, without a trace
    by_the_trainer = isinstance(stop.value.__context__, EmergencyStop)
    assert by_the_trainer == (step not in (40, 320))  # at a fence the conductor reads the signal itself
    assert entries(tmp_path)[-1].kind is RecordKind.RUN_FAILED
    assert "the room is on fire" in entries(tmp_path)[-1].body["message"]
    assert waiting(tmp_path) == []


class WhileIncubating(Quiet):
    """Does something when the trainer waits for a tournament."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def working(self, what: str) -> None:
        if "incubating" in what:
            self._act()


def test_a_halt_ends_a_tournament_that_is_waited_for_and_nothing_follows(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    with pytest.raises(EmergencyStop, check=telling(reason="the room is on fire", step=20)):
        run_here(progress=WhileIncubating(lambda: local.publish(signal(Level.HALT))))
    kinds = [entry.kind for entry in entries(tmp_path)]
    assert [kind for kind in kinds[-3:] if kind is not RecordKind.CHECKPOINT_COMMITTED][-2:] == [
        RecordKind.SIGNAL,
        RecordKind.RUN_FAILED,
    ]
    assert RecordKind.INCUBATION_ENDED not in kinds


def test_a_halt_between_two_rounds_ends_the_run_before_the_next_step(run_here: Any, local: LocalActor) -> None:
    with pytest.raises(EmergencyStop) as stop:
        run_here(progress=AtFence(3, lambda: local.publish(signal(Level.HALT))))
    assert (stop.value.step, stop.value.signal_id) == (60, "signal-1")


def test_the_first_halt_is_named(run_here: Any, local: LocalActor) -> None:
    def publish() -> None:
        local.publish(signal(Level.CONSERVATIVE, "signal-0", "careful"))
        local.publish(signal(Level.HALT, "signal-1", "first"))
        local.publish(signal(Level.HALT, "signal-2", "second"))

    with pytest.raises(EmergencyStop, check=telling("step 60", reason="first", step=60)):
        run_here(progress=AtFence(3, publish))


def test_a_halt_stops_the_run_also_when_its_reason_is_lost(run_here: Any, local: LocalActor) -> None:
    def publish_and_die() -> None:
        local.publish(signal(Level.HALT))
        local.gone = True

    with pytest.raises(EmergencyStop) as stop:
        run_here(tiny_task(loss=AtStep(29, publish_and_die)), growth__enabled=False)
    assert (stop.value.step, stop.value.reason, stop.value.signal_id) == (29, "", "")
    assert stop.value.__notes__ == [
        "the reason could not be read from the emergency queue: emergency: killed",
        "a second failure, while journaling what the emergency queue holds: ActorLost: emergency: killed",
    ]


def test_another_failure_is_not_taken_for_a_halt(run_here: Any, local: LocalActor) -> None:
    def burst() -> None:
        local.publish(signal(Level.HALT))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_here(tiny_task(loss=AtStep(29, burst)), growth__enabled=False)


def test_a_halt_stops_the_run_though_the_queue_is_full_of_notices(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    names = [f"n{number}" for number in range(32 - HALT_PLACES)]

    def fill_and_halt() -> None:
        for name in names:
            local.publish(signal(Level.NOTICE, name))
        with pytest.raises(EmergencyQueueFull):
            local.publish(signal(Level.NOTICE, "one more"))
        local.publish(signal(Level.HALT))

    with pytest.raises(EmergencyStop, check=telling(signal_id="signal-1", step=29)):
        run_here(tiny_task(loss=AtStep(29, fill_and_halt)), growth__enabled=False, emergency__capacity=32)
    assert heard(tmp_path) == ["signal-1", *names]


# -- the lower levels --------------------------------------------------------------------------------------------


def test_conservative_stops_germination_and_nothing_else(run_here: Any, local: LocalActor, tmp_path: Path) -> None:
    result = run_here(
        progress=AtFence(0, lambda: local.publish(signal(Level.CONSERVATIVE))), emergency__calm_fences=100
    )
    holds = [body for body in bodies(tmp_path, RecordKind.HOLD) if body["detail"] == "emergency level"]
    assert {(hold["reason"], hold["measured"], hold["limit"]) for hold in holds} == {("risk", 3, 3)}
    assert (bodies(tmp_path, RecordKind.COMMAND), result.seeds) == ([], ())
    assert [body["signal_id"] for body in bodies(tmp_path, RecordKind.SIGNAL)] == ["signal-1"]
    assert result.steps == 320


def test_conservative_is_left_after_calm_fences_and_both_changes_are_journaled(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    run_here(progress=AtFence(0, lambda: local.publish(signal(Level.CONSERVATIVE))), emergency__calm_fences=4)
    changes = [(b["fence"], b["before"], b["after"]) for b in bodies(tmp_path, RecordKind.LEVEL_CHANGED)]
    assert changes == [(1, "none", "CONSERVATIVE"), (5, "CONSERVATIVE", "none")]
    begun = [body["fence"] for body in bodies(tmp_path, RecordKind.INCUBATION_BEGUN)]
    assert min(fence for fence in begun if fence > 0) == 5


def test_conservative_lets_what_has_germinated_go_on(run_here: Any, local: LocalActor, tmp_path: Path) -> None:
    result = run_here(progress=AtFence(4, lambda: local.publish(signal(Level.CONSERVATIVE))))
    begun = [body["fence"] for body in bodies(tmp_path, RecordKind.INCUBATION_BEGUN)]
    assert begun != []
    assert max(begun) <= 4  # published when this fence was passed
    assert "FOSSILIZED" in [seed.stage for seed in result.seeds]


@pytest.mark.parametrize("level", [Level.NOTICE, Level.ELEVATED])
def test_a_lower_level_is_recorded_and_changes_no_bit(
    run_here: Any, local: LocalActor, tmp_path: Path, undisturbed: Result, level: Level
) -> None:
    told = run_here(progress=AtFence(0, lambda: local.publish(signal(level))))
    assert told.weights_sha256 == undisturbed.weights_sha256
    assert [body["level"] for body in bodies(tmp_path, RecordKind.SIGNAL)] == [level]


# -- nothing that was taken is lost ------------------------------------------------------------------------------


def heard(tmp_path: Path) -> list[str]:
    return [body["signal_id"] for body in bodies(tmp_path, RecordKind.SIGNAL)]


def test_all_signals_that_wait_at_the_last_fence_are_in_the_journal(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    names = [f"s{number}" for number in range(300)]
    run_here(
        progress=AtFence(15, lambda: [local.publish(signal(Level.NOTICE, name)) for name in names]),
        growth__enabled=False,
    )
    assert heard(tmp_path) == names


def test_a_signal_of_the_last_moment_is_heard_and_a_later_one_refused(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    last = signal(Level.ELEVATED, "last")
    local.before["close"] = lambda: local.publish(last)
    run_here(growth__enabled=False)
    kinds = [entry.kind for entry in entries(tmp_path)]
    assert (heard(tmp_path), kinds[-2:]) == (["last"], [RecordKind.SIGNAL, RecordKind.RUN_ENDED])
    assert waiting(tmp_path) == []
    with pytest.raises(EmergencyUnavailable, check=telling(signal_id="late")):
        local.publish(signal(Level.NOTICE, "late"))


def test_a_halt_of_the_last_moment_stays_in_the_queue_for_a_resume(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    local.before["close"] = lambda: local.publish(signal(Level.HALT, "last"))
    run_here(growth__enabled=False)
    assert (heard(tmp_path), waiting(tmp_path)) == ([], ["last"])
    told = [json.loads(line) for line in (telemetry_folder(tmp_path / "run") / LOG).read_text().splitlines()]
    assert ("emergency_signals_undelivered", {"sink": "conductor", "signals": 1}) in [
        (event["name"], event["fields"]) for event in told
    ]


def test_a_signal_is_acknowledged_only_when_the_journal_has_it(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    durable: list[list[str]] = []
    local.before["acknowledge"] = lambda: durable.append(heard(tmp_path))
    run_here(progress=AtFence(3, lambda: local.publish(signal(Level.NOTICE))), growth__enabled=False)
    assert durable == [["signal-1"]]


def test_signals_that_wait_when_a_run_fails_are_in_the_journal(
    run_here: Any, local: LocalActor, tmp_path: Path
) -> None:
    def burst() -> None:
        local.publish(signal(Level.ELEVATED))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_here(tiny_task(loss=AtStep(29, burst)), growth__enabled=False)
    assert [entry.kind for entry in entries(tmp_path)][-2:] == [RecordKind.SIGNAL, RecordKind.RUN_FAILED]


def test_the_halt_that_stopped_a_round_is_in_the_journal(run_here: Any, local: LocalActor, tmp_path: Path) -> None:
    with pytest.raises(EmergencyStop):
        run_here(tiny_task(loss=AtStep(29, lambda: local.publish(signal(Level.HALT)))), growth__enabled=False)
    assert heard(tmp_path) == ["signal-1"]


# -- across processes --------------------------------------------------------------------------------------------


def pid_of_the_actor(run_dir: Path) -> int:
    """The process of the present emergency actor. Its name is where publishers find it."""
    actor = ray.get_actor((emergency_folder(run_dir) / ADDRESS).read_text())
    pid: int = ray.get(actor.pid.remote(), timeout=60)
    return pid


class Outside(Quiet):
    """Publishes from a thread of its own while a fault holds the trainer, and kills the emergency actor before each
    signal: it waits for the actor that replaces the dead one.
    """

    def __init__(self, run_dir: Path, before_round: int) -> None:
        self._start, self._firings = f"round {before_round}:", Firings(faults_file(run_dir, 1))
        self._run_dir = run_dir
        self._publisher = Publisher(emergency_folder(run_dir), deadline_s=60)
        self._thread: threading.Thread | None = None
        self.found_out: list[str] = []

    def found(self, what: str) -> None:
        self.found_out.append(what)

    def working(self, what: str) -> None:
        if what.startswith(self._start) and self._thread is None:
            self._thread = threading.Thread(target=self._publish)
            self._thread.start()

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join()

    def _publish(self) -> None:
        until(self._firings.all)
        for level in (Level.NOTICE, Level.ELEVATED, Level.HALT):
            self._publisher.publish(signal(level, f"before-{level.name}"))
            os.kill(pid_of_the_actor(self._run_dir), os_signal.SIGKILL)
            self._publisher.publish(signal(level, level.name))
        (firing,) = self._firings.all()
        until(lambda: Path(f"/proc/{firing.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        os.kill(firing.pid, os_signal.SIGCONT)


def test_a_halt_from_outside_reaches_the_trainers_process_though_the_emergency_actor_is_killed(
    embedded: EmbeddedRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sinks: a file, a webhook that refuses each signal once, and a webhook without an answer, which the end of the
    run does not wait for."""
    from incidents import HALT, the_trace_of  # not above: Ray's workers import this file, and do not have tests/kit

    plain = tiny_config(
        run__dir=str(tmp_path / "run"), growth__enabled=False, supervision__without_progress=99, supervision__deaths=99
    )
    held = {"point": "tolaria.step", "fault": "stop", "passage": 61}
    hook_keys = {"kind": "webhook", "token_env": "TOKEN_OF_THE_HOOK", "total_s": 300.0, "read_s": 300.0}
    webhooks = [{"name": name, "url_env": f"ADDRESS_{name}", **hook_keys} for name in ("pager", "hung")]
    quick = {"first_retry_s": 0.01, "longest_retry_s": 0.01, "drain_s": 5.0}
    sinks = {"sinks": [{"name": "file", "kind": "file"}, *webhooks], **quick}
    config = RunConfig.model_validate({**plain.model_dump(), "faults": [held], "emergency": sinks})
    outside = Outside(tmp_path / "run", before_round=4)
    with hook() as server:
        monkeypatch.setenv("TOKEN_OF_THE_HOOK", "hush-token")
        monkeypatch.setenv("ADDRESS_pager", f"{server.address}/hush-path")
        monkeypatch.setenv("ADDRESS_hung", f"{server.address}{HUNG}")
        with pytest.raises(EmergencyStop) as stop:
            run(tiny_task(), config, on=OnRay(embedded), progress=outside)
        outside.join()
        paged = {signal_id for path, token, signal_id in server.got if path == "/hush-path"}
    assert stop.value.step == 61  # it came while the 61st step was held
    assert (stop.value.reason, stop.value.signal_id) == ("the room is on fire", "before-HALT")
    assert entries(tmp_path)[-1].body["error"] == "EmergencyStop"
    levels = ("HALT", "ELEVATED", "NOTICE")
    assert heard(tmp_path) == [name for level in levels for name in (f"before-{level}", level)]
    sent = (emergency_folder(tmp_path / "run") / "signals.jsonl").read_text().splitlines()
    assert {json.loads(line)["signal_id"] for line in sent} == set(heard(tmp_path))
    assert paged == set(heard(tmp_path))
    assert {token for _, token, _ in server.got} == {"Bearer hush-token"}
    held_back = [one.signal.signal_id for one in read_queue(emergency_folder(tmp_path / "run") / QUEUE).waiting()]
    assert sorted(held_back) == sorted(heard(tmp_path))  # for the webhook without an answer
    assert "sink hung: 6 signals wait, and go out after a resume" in outside.found_out
    assert not any("sink pager" in line for line in outside.found_out)
    shown = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert b'"emergency_signals_undelivered"' in shown["severe-events.jsonl"]
    secrets = (b"hush-path", b"hush-token", HUNG.encode())
    assert [name for name, content in shown.items() if any(one in content for one in secrets)] == []
    past = read_past(tmp_path / "run")
    assert (past.restarts, past.generation) == (3, 1)
    assert the_trace_of(tmp_path / "run", HALT) == entries(tmp_path)[-1].body["trace_id"]
