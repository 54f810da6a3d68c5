"""A handle of one actor for its callers. Each wait for an answer ends, and a death is reported with its known causes
and the last output. The handle does not depend on the component.
"""

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
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from actors.process_output import LastWords
from actors.ray_errors import loss_of, unwrapped
from actors.ray_private import record_of
from actors.shell import ActorSpec, Envelope, Reply, Shell
from esper.errors import ActorDoubtful, ActorLost, CallDeadlineExceeded, EsperError
from esper.ground.machine import process_began
from esper.telemetry.context import traceparent

GONE_WITHIN_S = 1.0
"""Wait for the end of a process that was killed. Ray asks a process to exit, which takes a running one milliseconds."""
DEAD_WITHIN_S = 30.0
"""Longest wait for the end of a process after SIGKILL. The system ends it at once, unless the machine is busy or the
process is in a call that nothing can interrupt."""
LOOK_EVERY_S = 0.5
"""Interval at which a waiting caller asks the actor for its progress. Shorter costs the actor; longer delays errors."""


class Patience:
    """Decides how long a caller waits: as long as the actor shows progress, and `limit_s` seconds without progress."""

    def __init__(self, limit_s: float, now_s: float) -> None:
        self._limit_s, self._since_s = limit_s, now_s
        self._seen: int | None = None

    def is_over(self, progress: int | None, now_s: float) -> bool:
        """Whether more than `limit_s` has passed without progress.

        Args:
            progress: Work done, as the actor last counted it; None: the actor did not answer, which is no progress.
            now_s: Monotonic time.
        """
        if progress is not None and progress != self._seen:
            self._seen, self._since_s = progress, now_s
        return now_s - self._since_s > self._limit_s


@dataclass(eq=False)
class Process:
    """One process of an actor. A call to it never reaches the process that replaces it."""

    actor: ActorHandle[Shell]
    pid: int
    began: int | None
    """Start time by the system's count, see `process_began`; None: it had ended when it was looked at first."""
    last_words: LastWords
    ended: CallDeadlineExceeded | None = None
    """The reason for which a caller ended the process. All other callers see it as the cause of the death."""
    counters: dict[str, int] = field(default_factory=dict)
    """The counters of the process at its last answer."""

    @property
    def is_there(self) -> bool:
        """Whether the process has not ended."""
        return self.began is not None and process_began(self.pid) == self.began

    def end(self) -> None:
        """Kill the process, also if it is stopped or in a C call, and wait until it is gone."""
        self.kill()
        self.await_end()

    def kill(self) -> None:
        """Ask Ray to kill the process. `await_end` follows."""
        ray.kill(self.actor)

    def await_end(self) -> None:
        """Wait until the process is gone. Call it after `kill`."""
        if not self.gone_soon():  # Ray asks the process to exit, and a stopped process does not
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # the process ended between the two lines
                return
            self.gone_soon(DEAD_WITHIN_S)

    def gone_soon(self, within_s: float = GONE_WITHIN_S) -> bool:
        """Whether the process ends within some seconds."""
        limit = time.monotonic() + within_s
        while self.is_there:
            if time.monotonic() > limit:
                return False
            time.sleep(0.002)
        return True


class Remote:
    """One actor on this machine. It stays the same object when another process replaces the actor's.

    Any thread may call its methods, but `switch_to`, which `RayCrew` calls under its lock, and `rebind`, in the line's.
    `_counting` guards the counters and the change from one process to the next.
    """

    def __init__(
        self,
        spec: ActorSpec,
        actor: ActorHandle[Shell],
        pid: int,
        *,
        patience_s: float,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the handle of an actor that is up.

        Args:
            patience_s: Seconds without progress after which a caller that waits kills the process.
            look: Called while an answer is awaited; raises if no answer can come.
        """
        self.role, self.name, self._look, self._patience_s = spec.role, spec.name, look, patience_s
        self._counting, self._outlived = threading.Lock(), Counter[str]()
        self.generation, self.process = spec.generation, Process(actor, pid, process_began(pid), LastWords.of(pid))

    @property
    def pid(self) -> int:
        """Id of the present process."""
        return self.process.pid

    def switch_to(self, next: Remote) -> None:
        """Send all calls to the process of `next` from now on. Holders of this object need no change.

        `next` gets the old process in exchange, so that ending `next` cannot end the process in use.
        """
        with self._counting:
            self._outlived.update(self.process.counters)
            self.process, next.process = next.process, replace(self.process, counters={})
        self.generation = next.generation

    @property
    def counters(self) -> dict[str, int]:
        """The actor's counters at its last answer, summed over all its processes."""
        with self._counting:
            return dict(self._outlived + Counter(self.process.counters))

    def ask(
        self, method: str, *arguments: object, group: str | None = None, process: Process | None = None
    ) -> Any:  # Any: as the method
        """Call a method and wait for its answer as long as the actor shows progress.

        Args:
            group: Concurrency group of the actor in which the method runs; by default its working thread.
            process: The process to ask, also if it was replaced since; by default the present one.

        Raises:
            ActorLost: the process is gone, or showed no progress for `patience_s` and was killed.
            Exception: whatever the method raised.
        """
        here, options = process or self.process, {} if group is None else {"concurrency_group": group}
        return self._opened(here, self._wait(here, self._send(here, "call", method, arguments, **options)))

    def ask_within(self, deadline_s: float, method: str, *arguments: object) -> Any:  # Any: as the method
        """Call a method and wait no longer than `deadline_s`; then the process is killed, whatever it is doing.

        Raises:
            CallDeadlineExceeded: there was no answer in time.
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
        """Make the actor take messages of a newer generation and refuse all others, also while a method runs in it."""
        here = self.process
        rebound: Any = here.actor.rebind.options(concurrency_group="ctl").remote(generation)  # Any: Ray's
        self._wait(here, rebound)
        self.generation = generation

    def reference(
        self, method: str, *arguments: object, process: Process | None = None
    ) -> list[ray.ObjectRef[Any]]:  # Any: as the method
        """Call a method, wait for its result, and return a reference to it.

        This process owns the result, which therefore outlives the actor.

        Raises:
            Exception: as `ask`.
        """
        here = process or self.process
        kept, reply = self._send(here, "hand_out", method, arguments, num_returns=2)
        self._opened(here, self._wait(here, kept, reply))
        return [kept]

    def end(self) -> None:
        """Kill the present process and wait until it is gone."""
        self.process.end()

    def died_at(self) -> float | None:
        """Unix time at which Ray saw the actor's process end; None: it has not."""
        told = record_of(self.process.actor)
        return told["EndTime"] / 1000 if told.get("EndTime") else None

    def check(self) -> None:
        """Raises: ActorLost: the present process has ended, with Ray's reason."""
        here = self.process
        if process_began(here.pid) != here.began:
            self._wait(here, here.actor.pid.remote())

    def _send(
        self, here: Process, entry: str, method: str, arguments: tuple[object, ...], **options: object
    ) -> Any:  # Any: Ray's
        """Send a message. Returns one reference to the answer, or a list of `num_returns`."""
        remote = getattr(here.actor, entry).options(**options)
        return remote.remote(method, Envelope(self.generation, traceparent()), arguments)

    def _opened(self, here: Process, reply: Reply) -> Any:  # Any: as the method
        with self._counting:  # answers to several threads come in any order; the largest counters are the newest
            here.counters = max(here.counters, reply.counters, key=lambda counters: sum(counters.values()))
        return reply.value

    def _wait(self, here: Process, *sent: ray.ObjectRef[Any]) -> Reply:
        """Wait for every reference that one call returned; the last is the reply."""
        patience = Patience(self._patience_s, time.monotonic())
        try:
            while ray.wait(list(sent), num_returns=len(sent), timeout=LOOK_EVERY_S)[1]:
                self._look()
                if patience.is_over(self._progress(here), time.monotonic()):
                    here.ended = CallDeadlineExceeded(
                        self.role, f"{self.name} showed no progress for {self._patience_s} s"
                    )
                    here.end()
                    self._raise(here, loss_of(self.role)(self.role, f"{here.ended.detail}; its process was ended"))
            reply: Reply = ray.get(sent[-1], timeout=self._patience_s)
        except RayError as error:
            self._raise(here, error)
        return reply

    def _raise(self, here: Process, error: BaseException) -> NoReturn:
        """Raise what `error` means; a death with the process's last output.

        A broken connection is a death if the process is gone, else doubt.
        """
        found = unwrapped(error, self.role, self.name)
        if isinstance(found, ActorDoubtful) and here.gone_soon():
            detail, doubt = f"{found.detail.removesuffix('.')}; its process has ended", found
            found = loss_of(self.role)(self.role, detail)
            found.__cause__ = doubt
        if isinstance(found, EsperError):
            found.actor, found.process = self.name, here.pid
        if isinstance(found, ActorLost) and (words := here.last_words.read()):
            found.add_note(f"{self.name} (process {here.pid}) wrote last:\n{words}")
        raise found from (here.ended if isinstance(found, ActorLost) and here.ended else found.__cause__)

    def _progress(self, here: Process) -> int | None:
        """Return the actor's progress counter, read by its watching thread; None if even that thread does not answer in
        time.
        """
        try:
            watched: Any = here.actor.progress.options(concurrency_group="watch").remote()  # Any: Ray types it loosely
            return int(ray.get(watched, timeout=LOOK_EVERY_S))
        except GetTimeoutError:  # the caller's `Patience` decides how often this may happen
            return None
