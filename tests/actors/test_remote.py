"""Remote actors: every wait for an answer ends, and each exception of Ray's becomes the right one of ours."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    UnserializableException,
)

from actors.actor_process import await_ready, spawn
from actors.embedded_ray import EmbeddedRay
from actors.process_output import WITHOUT_WORDS
from actors.ray_errors import unwrapped
from actors.remote import Patience, Remote
from actors.shell import METRICS, ActorSpec, Reply
from esper.errors import (
    ActorDoubtful,
    ActorError,
    ActorLost,
    CallDeadlineExceeded,
    CommandRejected,
    DependencyViolationError,
    PlacementUnavailable,
    PolicyFailed,
    StageConflict,
    TrainerRankLost,
)
from esper.ground.heartbeat import beat
from esper.ground.machine import is_alive
from esper.telemetry.metric_snapshot import MetricSnapshot
from esper.testing import fail_with

# -- exceptions of Ray ------------------------------------------------------------------------------------------


def raised_in_method(cause: Exception) -> RayTaskError:
    """As `ray.get` raises what a method raised: of Ray's class and of the cause's."""
    return RayTaskError("decide", "Traceback: the remote one", cause).as_instanceof_cause()


def raised_in_constructor(cause: Exception) -> ActorDiedError:
    return ActorDiedError(RayTaskError("__init__", "Traceback: the remote one", cause))


def killed() -> ActorDiedError:
    why = "The actor is dead because its worker process has died. Some common causes include: (1) ..."
    return ActorDiedError(ActorDiedErrorContext(actor_id=bytes(16), class_name="Shell", error_message=why))


def rejected() -> CommandRejected:
    error = StageConflict("stage_conflict", "command-1")
    error.__cause__ = KeyError("nonce")
    return error


def test_the_error_of_a_method_is_itself_with_its_cause_and_the_remote_traceback() -> None:
    sent = rejected()
    found = unwrapped(raised_in_method(sent), "kasmina")
    assert found is sent
    assert isinstance(found.__cause__, KeyError)
    assert found.__notes__ == ["raised in kasmina:\nTraceback: the remote one"]


def test_an_error_of_the_users_code_is_itself_too() -> None:
    sent = ZeroDivisionError("by the user's model")
    assert unwrapped(raised_in_method(sent), "tolaria") is sent


def test_the_error_of_a_constructor_is_itself_and_no_death() -> None:
    sent = rejected()
    assert unwrapped(raised_in_constructor(sent), "kasmina") is sent
    assert sent.__notes__ == ["raised in kasmina:\nTraceback: the remote one"]


UNKNOWN_ID = b"\xff" * 16  # as Ray has it
RAYS = [
    pytest.param(killed(), "tamiyo", ActorLost, "its worker process has died.", id="killed"),
    pytest.param(killed(), "tolaria", TrainerRankLost, "its worker process has died.", id="the trainer killed"),
    pytest.param(ActorDiedError(), "kasmina", ActorLost, "died unexpectedly", id="dead, nobody knows why"),
    pytest.param(RayActorError(), "kasmina", ActorLost, "experienced an error", id="an outage"),
    pytest.param(ActorUnavailableError("no link", UNKNOWN_ID), "kasmina", ActorDoubtful, "no link", id="unreachable"),
    pytest.param(ActorUnavailableError("no link", None), "tolaria", ActorDoubtful, "no link", id="unreachable trainer"),
    pytest.param(GetTimeoutError("Get timed out"), "tamiyo", CallDeadlineExceeded, "Get timed out", id="late"),
    pytest.param(ObjectLostError("ab", None, ""), "kasmina", ActorError, "ab", id="an object lost"),
    pytest.param(UnserializableException("Traceback"), "tamiyo", ActorError, "deserialize", id="unreadable error"),
]


@pytest.mark.parametrize(("error", "role", "cls", "said"), RAYS)
def test_rays_exceptions_become_ours_with_rays_as_the_cause(
    error: RayError, role: str, cls: type[ActorError], said: str
) -> None:
    found = unwrapped(error, role)
    assert isinstance(found, ActorError)
    assert type(found) is cls
    assert found.role == role
    assert said in found.detail
    assert "\n" not in found.detail
    assert "Some common causes" not in found.detail
    assert found.__cause__ is error


def test_rays_exceptions_inside_a_method_become_ours_too() -> None:
    lost = ObjectLostError("ab", None, "")
    found = unwrapped(raised_in_method(lost), "kasmina")
    assert type(found) is ActorError
    assert found.__cause__ is lost


class NeedsTwo(Exception):
    """An exception that pickle cannot rebuild: it gives `args` to the constructor, which wants two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Unsendable(Exception):
    """What no process can send to another."""

    def __reduce__(self) -> Any:
        raise TypeError("a lock cannot be sent")


def test_an_error_that_cannot_be_sent_is_named_in_the_one_that_arrives(caplog: pytest.LogCaptureFixture) -> None:
    found = unwrapped(RayTaskError("decide", "Traceback: the remote one", Unsendable()), "tamiyo")
    assert type(found) is ActorError
    assert "Unsendable" in str(found)
    assert "isn't serializable" in caplog.text


@pytest.mark.parametrize("error", [rejected(), KeyError("a"), TimeoutError("the user's"), KeyboardInterrupt()])
def test_exceptions_that_are_not_rays_are_left_alone(error: BaseException) -> None:
    assert unwrapped(error, "tamiyo") is error


# -- patience ----------------------------------------------------------------------------------------------------


def looks(patience: Patience, *answers: int | None) -> list[bool]:
    """Whether patience is over, asked once a second."""
    return [patience.is_over(answer, float(second)) for second, answer in enumerate(answers, start=1)]


def test_an_actor_that_makes_progress_may_take_for_ever() -> None:
    assert not any(looks(Patience(2.0, 0.0), *range(100)))


def test_patience_counts_from_the_last_progress() -> None:
    assert looks(Patience(2.0, 0.0), 5, 5, 5, 5) == [False, False, False, True]
    assert looks(Patience(2.0, 0.0), 5, 5, 6, 6, 6, 6) == [False] * 5 + [True]


def test_no_answer_is_no_progress() -> None:
    assert looks(Patience(2.0, 0.0), None, None, None) == [False, False, True]
    assert looks(Patience(2.0, 0.0), 5, None, 5, None) == [False, False, False, True]
    assert looks(Patience(2.0, 0.0), 5, None, None, 6) == [False, False, False, False]


# -- counters and processes -------------------------------------------------------------------------------------


def told(number: int, published: int, depth: int) -> MetricSnapshot:
    counters = {"esper.signal.published": {(): published}}
    return MetricSnapshot(number, counters, gauges={"esper.queue.depth": {(): depth}})


def test_of_answers_that_come_out_of_order_the_last_one_counts() -> None:
    remote = Remote(spec_of("nobody"), actor_of_nobody(), 0, patience_s=1.0)
    for number in (3, 7, 5):
        remote._opened(remote.process, Reply(None, told(number, number, 10 - number)))
    assert remote.metrics == told(0, 7, 3)


def test_the_counts_of_a_dead_process_stay_beside_those_of_the_next_and_come_with_an_error_too() -> None:
    remote, another = (Remote(spec_of("nobody"), actor_of_nobody(), 0, patience_s=1.0) for _ in range(2))
    remote._opened(first := remote.process, Reply(None, told(9, 4, 2)))
    failed = ValueError("from the actor")
    vars(failed)[METRICS] = told(10, 5, 2)
    with pytest.raises(ValueError, match="from the actor") as raised:
        remote._raise(first, failed)
    assert METRICS not in vars(raised.value)
    remote.switch_to(another)
    assert remote.metrics == MetricSnapshot(0, told(0, 5, 0).counters)
    remote._opened(first, Reply(None, told(11, 6, 2)))  # an answer of the dead process, too late
    remote._opened(remote.process, Reply(None, told(1, 1, 1)))
    assert remote.metrics == told(0, 6, 1)


def actor_of_nobody() -> Any:
    return None


# -- with actors -------------------------------------------------------------------------------------------------


def spec_of(name: str) -> ActorSpec:
    return ActorSpec(
        role="kasmina",
        name=name,
        run_id="handles",
        generation=1,
        cpus=0.0,
        gpus=0.0,
        threads=1,
        telemetry_folder=None,
        build=Component,
    )


class Component:
    """Works, or does not."""

    def work(self, beats: int, pause_s: float) -> str:
        for _ in range(beats):
            threading.Event().wait(pause_s)
            beat()
        return "done"

    def snapshot(self) -> bytes:
        return bytes(10_000_000)

    def refuse(self) -> None:
        fail_with(StageConflict("stage_conflict", "command-1"), KeyError("nonce"))

    def loop(self) -> None:
        while True:
            pass

    def die_speaking(self) -> None:
        print("what stands on standard output")
        print("and the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def raise_chain(self) -> None:
        try:
            raise RuntimeError("the user's") from KeyError("the root")
        except RuntimeError as error:
            fail_with(PolicyFailed("gnn", 3), error)

    def leave(self) -> None:
        fail_with(SystemExit(3))

    def interrupt(self) -> None:
        raise KeyboardInterrupt("by the user's own code")

    def raise_unsendable(self) -> None:
        raise NeedsTwo("one", "two") from KeyError("the cause")


PATIENCE = {"busy": 5.0, "stuck": 1.0, "frozen": 1.0} | dict.fromkeys(("late", "owner", "speaker", "doubted"), 60.0)
"""Seconds. That of `stuck` and `frozen` runs out, however fast the machine is; that of `busy` does at no load."""


THREADS = dict.fromkeys(PATIENCE, 1) | {"owner": 2}
"""With which each computes; one, as their Ray does, but for `owner`."""


@pytest.fixture(scope="module")
def remotes(embedded: EmbeddedRay) -> Iterator[dict[str, Remote]]:
    """An actor for each test, started side by side: most of them do not outlive theirs."""
    del embedded
    specs, began_s = [replace(spec_of(name), threads=THREADS[name]) for name in PATIENCE], time.monotonic()
    begun = [(spec, spawn(spec)) for spec in specs]
    yield {
        spec.name: Remote(spec, actor, await_ready(spec, actor, began_s, 100.0), patience_s=PATIENCE[spec.name])
        for spec, actor in begun
    }
    for _, actor in begun:
        ray.kill(actor)


def test_an_actor_that_makes_progress_may_take_longer_than_patience(remotes: dict[str, Remote]) -> None:
    assert remotes["busy"].ask("work", 60, 0.1) == "done"


@pytest.mark.parametrize("name", ["busy", "owner"])
def test_the_process_of_an_actor_begins_with_the_threads_of_its_spec(remotes: dict[str, Remote], name: str) -> None:
    environment = Path(f"/proc/{remotes[name].pid}/environ").read_text().split("\0")
    assert f"OMP_NUM_THREADS={THREADS[name]}" in environment


def test_a_message_of_another_generation_is_refused_across_processes(remotes: dict[str, Remote]) -> None:
    busy = remotes["busy"]
    other = Remote(replace(spec_of("busy"), generation=2), busy.process.actor, busy.pid, patience_s=60.0)
    with pytest.raises(DependencyViolationError, match="another generation's"):
        other.ask("work", 1, 0.0)


def test_an_error_is_raised_before_a_reference_is_passed_on(remotes: dict[str, Remote]) -> None:
    with pytest.raises(StageConflict) as caught:
        remotes["busy"].reference("refuse")
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_actor_without_progress_is_killed(remotes: dict[str, Remote]) -> None:
    with pytest.raises(ActorLost, match=r"stuck showed no progress for 1.0 s; its process was ended"):
        remotes["stuck"].ask("loop")
    assert not is_alive(remotes["stuck"].pid)


def test_a_frozen_process_is_killed_too(remotes: dict[str, Remote]) -> None:
    os.kill(remotes["frozen"].pid, signal.SIGSTOP)
    with pytest.raises(ActorLost):
        remotes["frozen"].ask("work", 1, 0.0)
    assert not is_alive(remotes["frozen"].pid)


def test_an_actor_beyond_its_deadline_is_killed_although_it_makes_progress(remotes: dict[str, Remote]) -> None:
    late = remotes["late"]
    assert late.ask_within(60.0, "work", 1, 0.0) == "done"
    with pytest.raises(CallDeadlineExceeded, match=r"work took longer than 0.3 s"):
        late.ask_within(0.3, "work", 100_000, 0.05)
    assert not is_alive(late.pid)
    with pytest.raises(ActorLost):
        late.ask_within(60.0, "work", 1, 0.0)


def test_a_reference_outlives_its_actor(remotes: dict[str, Remote]) -> None:
    owner = remotes["owner"]
    (kept,) = owner.reference("snapshot")
    owner.end()
    assert not is_alive(owner.pid)
    assert len(ray.get(kept)) == 10_000_000
    with pytest.raises(ActorLost) as lost:
        owner.ask("snapshot")
    assert isinstance(lost.value.__cause__, ActorDiedError)
    assert lost.value.__notes__ == [f"owner (process {owner.pid}) {WITHOUT_WORDS}"]


def test_a_death_is_reported_with_the_last_output(remotes: dict[str, Remote]) -> None:
    with pytest.raises(ActorLost) as lost:
        remotes["speaker"].ask("die_speaking")
    (note,) = lost.value.__notes__
    assert note.startswith(f"speaker (process {remotes['speaker'].pid}) wrote last:")
    assert "stderr:\nand the last words" in note
    assert "what stands on standard output" in note


def test_a_broken_connection_is_doubt_until_the_process_has_ended(
    remotes: dict[str, Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    doubted = remotes["doubted"]

    def unreachable(*_: object, **__: object) -> object:
        raise ActorUnavailableError("no link", UNKNOWN_ID)

    with monkeypatch.context() as broken:
        broken.setattr("actors.remote.ray.get", unreachable)
        with pytest.raises(ActorDoubtful, match="no link") as alive:
            doubted.ask("work", 0, 0.0)
        os.kill(doubted.pid, signal.SIGKILL)
        with pytest.raises(ActorLost, match=r"no link\..*; its process has ended") as dead:
            doubted.ask("work", 0, 0.0)
    assert (alive.value.actor, dead.value.actor) == ("doubted", "doubted")
    assert isinstance(dead.value.__cause__, ActorDoubtful)
    assert isinstance(dead.value.__cause__.__cause__, ActorUnavailableError)


def test_an_error_that_pickle_cannot_rebuild_comes_with_its_text_and_its_cause(remotes: dict[str, Remote]) -> None:
    with pytest.raises(ActorError, match="NeedsTwo: one and two") as caught:
        remotes["busy"].ask("raise_unsendable")
    assert isinstance(caught.value.__cause__, KeyError)
    assert any("raise_unsendable" in note for note in caught.value.__notes__)


def test_a_chain_of_causes_arrives_whole(remotes: dict[str, Remote]) -> None:
    with pytest.raises(PolicyFailed) as caught:
        remotes["busy"].ask("raise_chain")
    cause = caught.value.__cause__
    assert repr(cause) == repr(RuntimeError("the user's"))
    assert cause is not None
    assert repr(cause.__cause__) == repr(KeyError("the root"))


@pytest.mark.parametrize(("method", "said"), [("leave", "SystemExit: 3"), ("interrupt", "KeyboardInterrupt: by the")])
def test_system_exit_arrives_as_an_error_and_ends_no_process(
    remotes: dict[str, Remote], method: str, said: str
) -> None:
    with pytest.raises(ActorError, match=said):
        remotes["busy"].ask(method)
    assert remotes["busy"].ask("work", 1, 0.0) == "done"


def test_no_room_for_an_actor_names_the_resources_asked_and_present(
    embedded: EmbeddedRay,
) -> None:
    del embedded
    spec = replace(spec_of("giant"), cpus=1000.0)
    actor = spawn(spec)
    with pytest.raises(PlacementUnavailable, match=r"giant was not up 0.5 s .*asked: CPU 1000; there: CPU 8 \("):
        await_ready(spec, actor, time.monotonic(), 0.5)
    ray.kill(actor)


def test_the_start_deadline_counts_from_when_the_first_actor_began(embedded: EmbeddedRay) -> None:
    del embedded
    actor = spawn(replace(spec_of("giant"), cpus=1000.0), 2)
    an_hour_s = 3600.0  # counted from now it would not be over before this test is
    with pytest.raises(PlacementUnavailable):
        await_ready(spec_of("giant"), actor, time.monotonic() - an_hour_s, an_hour_s)
    ray.kill(actor)
