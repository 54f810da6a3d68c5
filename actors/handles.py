"""Actors as their callers see them: every wait ends, and Ray's errors become ours, once. It knows no room's rules."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from actors.shell import Envelope, Reply, Shell
from esper.errors import ActorDoubtful, ActorLost, CallDeadlineExceeded, TrainerRankLost
from esper.telemetry.context import traceparent

GONE_WITHIN_S = 1.0
LOOK_EVERY_S = 0.5
"""How often a waiting caller asks whether the actor still gets on."""


def is_gone(pid: int) -> bool:
    """A process of this machine has ended; whether its parent has collected it does not matter."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def unwrapped(error: BaseException, role: str) -> BaseException:
    """What really happened, of our own tree where it is ours; the original is its cause where it is not.

    A death is `ActorLost`; a broken connection is doubt, not death; what a method or constructor raised is itself.
    """
    if isinstance(error, RayTaskError):
        cause: BaseException = error.cause
        cause.add_note(f"raised in {role}:\n{error}")
        return cause
    if isinstance(error, ActorDiedError) and error.args and isinstance(error.args[0], RayTaskError):
        return unwrapped(error.args[0], role)  # its constructor raised
    lost = TrainerRankLost if role == "tolaria" else ActorLost
    if isinstance(error, ActorUnavailableError):
        doubt: BaseException = ActorDoubtful(role, _first_line(error))
        doubt.__cause__ = error
        return doubt
    if isinstance(error, RayActorError):
        death: BaseException = lost(role, _first_line(error))
        death.__cause__ = error
        return death
    return error


def raise_unwrapped(error: BaseException, role: str) -> NoReturn:
    """Raise what really happened, with the cause that it came with."""
    found = unwrapped(error, role)
    raise found from found.__cause__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ending = next((line for line in lines if line.startswith("The actor is dead")), lines[0] if lines else "")
    return ending.partition(" Some common causes")[0]


class Remote:
    """One actor; every wait on it ends."""

    def __init__(
        self, role: str, actor: ActorHandle[Shell], pid: int, *, run_id: str, generation: int, patience_s: float
    ) -> None:
        self.role, self.pid, self.run_id, self.generation = role, pid, run_id, generation
        self._actor, self._patience_s = actor, patience_s
        self.counters: dict[str, int] = {}
        """What the actor had counted when it last answered; they outlive it."""

    def ask(self, method: str, *arguments: object, group: str | None = None) -> Any:  # Any: as the method
        """Call and wait, for as long as the actor shows progress.

        Raises:
            ActorLost: its process is gone, or it showed none for `patience_s` and was ended.
            Exception: whatever the method raised.
        """
        return self._opened(self._wait(self._send("call", method, arguments, group)))

    def ask_within(self, deadline_s: float, method: str, *arguments: object) -> Any:  # Any: as the method
        """Call and wait no longer than `deadline_s`; then the actor's process is ended, whatever it is doing.

        Raises:
            CallDeadlineExceeded: it did not answer in time.
            Exception: whatever the method raised.
        """
        sent = self._send("call", method, arguments, None)
        try:
            return self._opened(ray.get(sent, timeout=deadline_s))
        except GetTimeoutError as error:
            self.end()
            raise CallDeadlineExceeded(self.role, f"{method} took longer than {deadline_s} s") from error
        except (RayTaskError, RayActorError) as error:
            raise_unwrapped(error, self.role)

    def reference(self, method: str, *arguments: object) -> list[ray.ObjectRef[Any]]:  # Any: as the method
        """Call, wait until the result is there, and return it unseen: it is ours and outlives the actor."""
        sent = self._send("hand_out", method, arguments, None)
        self._wait(sent, fetch=False)
        return [sent]

    def end(self) -> None:
        """End the actor's process, whatever it is doing; returns when it is gone, or after `GONE_WITHIN_S`."""
        ray.kill(self._actor)
        limit = time.monotonic() + GONE_WITHIN_S
        while not is_gone(self.pid) and time.monotonic() < limit:
            time.sleep(0.002)

    def _send(self, entry: str, method: str, arguments: tuple[object, ...], group: str | None) -> ray.ObjectRef[Any]:
        remote = getattr(self._actor, entry)
        if group is not None:
            remote = remote.options(concurrency_group=group)
        sent: ray.ObjectRef[Any] = remote.remote(method, Envelope(self.generation, traceparent()), arguments)
        return sent

    def _opened(self, reply: Reply) -> Any:  # Any: as the method
        self.counters = reply.counters
        return reply.value

    def _wait(self, sent: ray.ObjectRef[Any], *, fetch: bool = True) -> Any:  # Any: as the method
        seen, since = -1, time.monotonic()
        try:
            while not ray.wait([sent], timeout=LOOK_EVERY_S)[0]:
                now = self._progress()
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > self._patience_s:
                    self.end()
                    lost = TrainerRankLost if self.role == "tolaria" else ActorLost
                    raise lost(self.role, f"no progress for {self._patience_s} s; its process was ended")
            return ray.get(sent, timeout=self._patience_s) if fetch else None
        except (RayTaskError, RayActorError) as error:
            raise_unwrapped(error, self.role)

    def _progress(self) -> int:
        """What the actor's watcher says; the last known (-1: none) if even that does not answer."""
        try:
            watched: Any = self._actor.progress.options(concurrency_group="watch").remote()  # Any: Ray types it loosely
            return int(ray.get(watched, timeout=LOOK_EVERY_S))
        except GetTimeoutError:  # not an answer, so not progress; the caller's patience is what ends this
            return -1
