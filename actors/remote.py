"""Actors as their callers see them: every wait ends, and Ray's errors become ours, once. It knows no room's rules."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import ray
from ray._private.state import actors as actor_table
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.process_output import LastWords
from actors.shell import ActorSpec, Envelope, Reply, Shell, relinked
from esper.errors import ActorDoubtful, ActorError, ActorLost, CallDeadlineExceeded, EsperError, TrainerRankLost
from esper.ground.machine import process_began
from esper.telemetry.context import traceparent

GONE_WITHIN_S = 1.0
LOOK_EVERY_S = 0.5
"""How often a waiting caller asks whether the actor still gets on."""


def unwrapped(error: BaseException, role: str, name: str = "") -> BaseException:
    """What really happened, of our own tree where it is ours; the original is its cause where it is not.

    A death is `ActorLost`; a broken connection is doubt, not death; what a method or constructor raised is itself,
    unless it was Ray's or could not be sent: then, and for all else of Ray's, it is `ActorError`.
    """
    if isinstance(error, RayTaskError):
        cause = relinked(unwrapped(error.cause, role, name))
        cause.add_note(f"raised in {name or role}:\n{error}")
        return cause
    if isinstance(error, ActorDiedError) and error.args and isinstance(error.args[0], RayTaskError):
        return unwrapped(error.args[0], role, name)  # its constructor raised
    if not isinstance(error, RayError):
        return error
    found = _kind(error, role)(role, f"{name}: {_first_line(error)}" if name not in ("", role) else _first_line(error))
    found.__cause__ = error
    return found


def _kind(error: RayError, role: str) -> type[ActorError]:
    if isinstance(error, ActorUnavailableError):
        return ActorDoubtful
    if isinstance(error, RayActorError):
        return _lost(role)
    return CallDeadlineExceeded if isinstance(error, GetTimeoutError) else ActorError


def _lost(role: str) -> type[ActorLost]:
    return TrainerRankLost if role == "tolaria" else ActorLost


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ending = next((line for line in lines if line.startswith("The actor is dead")), lines[0] if lines else "")
    return ending.partition(" Some common causes")[0]


class Patience:
    """How long a caller goes on waiting: for ever while the actor gets on, else `limit_s`."""

    def __init__(self, limit_s: float, now_s: float) -> None:
        self._limit_s, self._since_s = limit_s, now_s
        self._seen: int | None = None

    def is_over(self, progress: int | None, now_s: float) -> bool:
        """More than `limit_s` went by since the actor last told of progress. None: it told nothing."""
        if progress is not None and progress != self._seen:
            self._seen, self._since_s = progress, now_s
        return now_s - self._since_s > self._limit_s


@dataclass(eq=False)
class Process:
    """The process that an actor is now: what is asked of it is asked of no successor."""

    actor: ActorHandle[Shell]
    pid: int
    began: int | None
    last_words: LastWords
    ended: CallDeadlineExceeded | None = None
    """Why a caller ended it; what every other caller then sees as its death has this cause."""
    counters: dict[str, int] = field(default_factory=dict)
    """What it had counted when it last answered."""

    @property
    def is_there(self) -> bool:
        """It has not ended."""
        return self.began is not None and process_began(self.pid) == self.began

    def end(self) -> None:
        """End it, whatever it is doing, frozen or not; returns when it is gone."""
        self.kill()
        self.await_end()

    def kill(self) -> None:
        """Have it ended."""
        ray.kill(self.actor)

    def await_end(self) -> None:
        """Return when it is gone, which was killed."""
        if not self.gone_soon():  # Ray asks the process to end itself, which one that is stopped never hears
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # it went at this very moment
                return
            self.gone_soon()

    def gone_soon(self) -> bool:
        """Wait a moment for its end; whether it has come."""
        limit = time.monotonic() + GONE_WITHIN_S
        while self.is_there:
            if time.monotonic() > limit:
                return False
            time.sleep(0.002)
        return True


class Remote:
    """One actor, on this machine, whichever process it is; every wait on it ends. Several threads may ask it."""

    def __init__(
        self,
        spec: ActorSpec,
        actor: ActorHandle[Shell],
        pid: int,
        *,
        patience_s: float,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Take an actor that is up.

        Args:
            patience_s: How long it may show no progress while it is asked something.
            look: Called while an answer is waited for; raises if none can come.
        """
        self.role, self.name, self._look, self._patience_s = spec.role, spec.name, look, patience_s
        self._counting, self._outlived = threading.Lock(), Counter[str]()
        self.generation, self.process = spec.generation, Process(actor, pid, process_began(pid), LastWords.of(pid))

    @property
    def pid(self) -> int:
        """Of the process that it is now."""
        return self.process.pid

    def succeed(self, next: Remote) -> None:
        """Ask another actor from now on, in place of one that is gone: whoever holds this one need not know.

        `next` has the process that is gone then, so that nobody ends the other by it.
        """
        with self._counting:
            self._outlived.update(self.process.counters)
            self.process, next.process = next.process, replace(self.process, counters={})
        self.generation = next.generation

    @property
    def counters(self) -> dict[str, int]:
        """What the actor had counted when it last answered, and those before it; they outlive it."""
        with self._counting:
            return dict(self._outlived + Counter(self.process.counters))

    def ask(
        self, method: str, *arguments: object, group: str | None = None, process: Process | None = None
    ) -> Any:  # Any: as the method
        """Call and wait, for as long as the actor shows progress.

        Args:
            process: The one that is asked, which may have had a successor since; by default the one that it is now.

        Raises:
            ActorLost: its process is gone, or it showed none for `patience_s` and was ended.
            Exception: whatever the method raised.
        """
        here, options = process or self.process, {} if group is None else {"concurrency_group": group}
        return self._opened(here, self._wait(here, self._send(here, "call", method, arguments, **options)))

    def ask_within(self, deadline_s: float, method: str, *arguments: object) -> Any:  # Any: as the method
        """Call and wait no longer than `deadline_s`; then the actor's process is ended, whatever it is doing.

        Raises:
            CallDeadlineExceeded: it did not answer in time.
            Exception: whatever the method raised.
        """
        here = self.process
        sent = self._send(here, "call", method, arguments)
        try:
            return self._opened(here, ray.get(sent, timeout=deadline_s))
        except GetTimeoutError as error:
            here.end()
            late = CallDeadlineExceeded(self.role, f"{method} took longer than {deadline_s} s")
            late.actor, late.process = self.name, here.pid
            raise late from error
        except RayError as error:
            self._raise(here, error)

    def rebind(self, generation: int) -> None:
        """Have the actor take messages of a newer generation, and no others, whatever it is doing now."""
        here = self.process
        rebound: Any = here.actor.rebind.options(concurrency_group="ctl").remote(generation)  # Any: Ray's
        self._wait(here, rebound)
        self.generation = generation

    def reference(
        self, method: str, *arguments: object, process: Process | None = None
    ) -> list[ray.ObjectRef[Any]]:  # Any: as the method
        """Call, wait until the result is there, and return it unseen: it is ours and outlives the actor.

        Raises:
            Exception: as `ask`.
        """
        here = process or self.process
        kept, reply = self._send(here, "hand_out", method, arguments, num_returns=2)
        self._opened(here, self._wait(here, kept, reply))
        return [kept]

    def end(self) -> None:
        """End the actor's process, whatever it is doing, frozen or not; returns when it is gone."""
        self.process.end()

    def died_at(self) -> float | None:
        """Unix time at which Ray saw the actor's process end; None: it has not."""
        told: Any = actor_table(self.process.actor._actor_id.hex())  # Any: Ray leaves it untyped
        return told["EndTime"] / 1000 if told.get("EndTime") else None

    def check(self) -> None:
        """Raises: ActorLost: its process has ended, and Ray says how."""
        here = self.process
        if process_began(here.pid) != here.began:
            self._wait(here, here.actor.pid.remote())

    def _send(
        self, here: Process, entry: str, method: str, arguments: tuple[object, ...], **options: object
    ) -> Any:  # Any: Ray's
        """Send a message; one reference, or as many as `num_returns` says."""
        remote = getattr(here.actor, entry).options(**options)
        return remote.remote(method, Envelope(self.generation, traceparent()), arguments)

    def _opened(self, here: Process, reply: Reply) -> Any:  # Any: as the method
        with self._counting:  # answers to several threads come out of order, and counters only go up
            here.counters = max(here.counters, reply.counters, key=lambda counters: sum(counters.values()))
        return reply.value

    def _wait(self, here: Process, *sent: ray.ObjectRef[Any]) -> Reply:
        """Wait for all that one call returns; the last of it is the reply."""
        patience = Patience(self._patience_s, time.monotonic())
        try:
            while ray.wait(list(sent), num_returns=len(sent), timeout=LOOK_EVERY_S)[1]:
                self._look()
                if patience.is_over(self._progress(here), time.monotonic()):
                    here.ended = CallDeadlineExceeded(
                        self.role, f"{self.name} showed no progress for {self._patience_s} s"
                    )
                    here.end()
                    self._raise(here, _lost(self.role)(self.role, f"{here.ended.detail}; its process was ended"))
            reply: Reply = ray.get(sent[-1], timeout=self._patience_s)
        except RayError as error:
            self._raise(here, error)
        return reply

    def _raise(self, here: Process, error: BaseException) -> NoReturn:
        """Raise what really happened; of a dead actor with what it wrote last. The end of a process ends all doubt."""
        found = unwrapped(error, self.role, self.name)
        if isinstance(found, ActorDoubtful) and here.gone_soon():
            detail, doubt = f"{found.detail.removesuffix('.')}; its process has ended", found
            found = _lost(self.role)(self.role, detail)
            found.__cause__ = doubt
        if isinstance(found, EsperError):
            found.actor, found.process = self.name, here.pid
        if isinstance(found, ActorLost) and (words := here.last_words.read()):
            found.add_note(f"{self.name} (process {here.pid}) wrote last:\n{words}")
        raise found from (here.ended if isinstance(found, ActorLost) and here.ended else found.__cause__)

    def _progress(self, here: Process) -> int | None:
        """What the actor's watcher says; None if even that does not answer in time."""
        try:
            watched: Any = here.actor.progress.options(concurrency_group="watch").remote()  # Any: Ray types it loosely
            return int(ray.get(watched, timeout=LOOK_EVERY_S))
        except GetTimeoutError:  # the caller's patience is what ends this
            return None
