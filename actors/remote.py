"""A handle of one actor for its callers.

No caller waits for ever, because a caller kills an actor that shows no progress. The error for a death has the known
causes of the death and the last output of the process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from actors.process_output import WITHOUT_WORDS, LastWords
from actors.ray_errors import loss_of, unwrapped
from actors.ray_private import record_of
from actors.shell import METRICS, ActorSpec, Envelope, Reply, Shell
from esper.errors import ActorDoubtful, ActorLost, CallDeadlineExceeded, EsperError
from esper.ground.machine import process_began
from esper.telemetry.context import traceparent
from esper.telemetry.metric_snapshot import MetricSnapshot

GONE_WITHIN_S = 1.0
"""Longest wait in seconds for the end of a process, after Ray asked the process to exit. A running process needs
milliseconds."""
DEAD_WITHIN_S = 30.0
"""Longest wait for the end of a process after SIGKILL, in seconds. The end takes long if the machine is busy, or if the
process is in a system call that cannot be interrupted."""
LOOK_EVERY_S = 0.5
"""Seconds between two requests of a waiting caller for the actor's progress. A shorter interval slows down the actor; a
longer interval delays errors."""


class Patience:
    """Decides how long a caller waits.

    The wait ends after more than `limit_s` seconds without progress of the actor.
    """

    def __init__(self, limit_s: float, now_s: float) -> None:
        self._limit_s, self._since_s = limit_s, now_s
        self._seen: int | None = None

    def is_over(self, progress: int | None, now_s: float) -> bool:
        """Return whether more than `limit_s` has passed without progress.

        Args:
            progress: The actor's progress counter. None: the actor did not answer. This counts as no progress.
            now_s: Monotonic time.
        """
        if progress is not None and progress != self._seen:
            self._seen, self._since_s = progress, now_s
        return now_s - self._since_s > self._limit_s


@dataclass(eq=False)
class Process:
    """One process of an actor. A call to this process is never sent to a process that replaces it."""

    actor: ActorHandle[Shell]
    pid: int
    began: int | None
    """Start time in the clock ticks of the system; see `process_began`. None: the process had ended before the time was
    read."""
    last_words: LastWords
    ended: CallDeadlineExceeded | None = None
    """The error that made a caller kill the process. Other callers get this error as the cause of the death."""
    metrics: MetricSnapshot = field(default_factory=MetricSnapshot)
    """The metrics of the process in its last answer."""

    @property
    def is_there(self) -> bool:
        """True if the process has not ended."""
        return self.began is not None and process_began(self.pid) == self.began

    def end(self) -> None:
        """Kill the process, even if it is stopped or in a C call, and wait for its end."""
        self.kill()
        self.await_end()

    def kill(self) -> None:
        """Let Ray kill the process. Call `await_end` afterwards."""
        ray.kill(self.actor)

    def await_end(self) -> None:
        """Wait for the end of the process. Call it after `kill`."""
        if not self.gone_soon():  # Ray asks the process to exit, but a stopped process does not react
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # the process ended between the two lines
                return
            self.gone_soon(DEAD_WITHIN_S)

    def gone_soon(self, within_s: float = GONE_WITHIN_S) -> bool:
        """Wait for the end of the process, at most `within_s` seconds. Return whether it has ended."""
        limit = time.monotonic() + within_s
        while self.is_there:
            if time.monotonic() > limit:
                return False
            time.sleep(0.002)
        return True


class Remote:
    """One actor on this machine. It stays the same object when the actor's process is replaced.

    Any thread may call its methods, with two exceptions: `RayCrew` calls `switch_to` under its lock, and only the
    line's thread calls `rebind`. The lock `_counting` guards the metrics and the change of the process.
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
            patience_s: Seconds without progress after which a waiting caller kills the process.
            look: Function that is called during a wait. It raises an error if no answer can come.
        """
        self.role, self.name, self._look, self._patience_s = spec.role, spec.name, look, patience_s
        self._counting, self._outlived = threading.Lock(), MetricSnapshot()
        self._has_groups = not spec.asynchronous
        self.generation, self.process = spec.generation, Process(actor, pid, process_began(pid), LastWords.of(pid))

    @property
    def pid(self) -> int:
        """Id of the present process."""
        return self.process.pid

    def switch_to(self, next: Remote) -> None:
        """Send all later calls to the process of `next`. References to this object stay valid.

        `next` gets the old process, so that `next.end` does not end the process in use.
        """
        with self._counting:
            self._outlived = self._outlived.plus(self.process.metrics.outlived())
            self.process, next.process = next.process, replace(self.process, metrics=MetricSnapshot())
        self.generation = next.generation

    @property
    def metrics(self) -> MetricSnapshot:
        """The actor's metrics, summed over all its processes. For each process, the metrics in its last answer are
        used. Gauges are those of the present process.
        """
        with self._counting:
            return self._outlived.plus(self.process.metrics)

    def ask(
        self, method: str, *arguments: object, group: str | None = None, process: Process | None = None
    ) -> Any:  # Any: the method's result
        """Call a method, and wait for its answer as long as the actor shows progress.

        Args:
            group: Concurrency group of the actor in which the method runs. None: the working thread of the actor. An
                asynchronous actor has no groups.
            process: The process to call, even if it was replaced. None: the present process.

        Raises:
            ActorLost: the process has ended, or it showed no progress for `patience_s` and was killed.
            Exception: the exception of the method.
        """
        here = process or self.process
        return self._opened(here, self._wait(here, self._send(here, "call", method, arguments, **self._in(group))))

    def ask_within(self, deadline_s: float, method: str, *arguments: object) -> Any:  # Any: the method's result
        """Call a method, and wait at most `deadline_s` for its answer. After the deadline, kill the process.

        Raises:
            CallDeadlineExceeded: no answer came in time.
            Exception: the exception of the method.
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
        """Make the actor accept only messages of a newer generation. A running method does not delay this."""
        here = self.process
        rebound: Any = here.actor.rebind.options(**self._in("ctl")).remote(generation)  # Any: a type of Ray
        self._wait(here, rebound)
        self.generation = generation

    def flush(self) -> ray.ObjectRef[Reply]:
        """Ask the actor to export what waits for a collector. The answer comes after some seconds at most."""
        asked: ray.ObjectRef[Reply] = self.process.actor.flush.options(**self._in("ctl")).remote()
        return asked

    def reference(
        self, method: str, *arguments: object, process: Process | None = None
    ) -> list[ray.ObjectRef[Any]]:  # Any: the method's result
        """Call a method, wait for its result, and return a reference to it.

        This process owns the result, so the result stays valid after the end of the actor.

        Raises:
            Exception: see `ask`.
        """
        here = process or self.process
        kept, reply = self._send(here, "hand_out", method, arguments, num_returns=2)
        self._opened(here, self._wait(here, kept, reply))
        return [kept]

    def end(self) -> None:
        """Kill the present process and wait for its end."""
        self.process.end()

    def died_at(self) -> float | None:
        """Return the Unix time at which Ray noticed the end of the actor's process. None: Ray has noticed no end."""
        told = record_of(self.process.actor)
        return told["EndTime"] / 1000 if told.get("EndTime") else None

    def check(self) -> None:
        """Check the present process. Raises: ActorLost: the process has ended. The error contains the reason that Ray
        reports.
        """
        here = self.process
        if process_began(here.pid) != here.began:
            self._wait(here, here.actor.pid.remote())

    def _in(self, group: str | None) -> dict[str, str]:
        """Return Ray's options for a method that runs in a concurrency group."""
        return {} if group is None or not self._has_groups else {"concurrency_group": group}

    def _send(
        self, here: Process, entry: str, method: str, arguments: tuple[object, ...], **options: object
    ) -> Any:  # Any: a type of Ray
        """Send a message. Return a reference to the answer, or a list of `num_returns` references."""
        remote = getattr(here.actor, entry).options(**options)
        return remote.remote(method, Envelope(self.generation, traceparent()), arguments)

    def _opened(self, here: Process, reply: Reply) -> Any:  # Any: the method's result
        self._note(here, reply.metrics)
        return reply.value

    def _note(self, here: Process, told: MetricSnapshot) -> None:
        """Store the metrics of an answer, if they are newer. Several threads get answers in any order."""
        with self._counting:
            here.metrics = max(here.metrics, told, key=lambda metrics: metrics.number)

    def _wait(self, here: Process, *sent: ray.ObjectRef[Any]) -> Reply:
        """Wait for all references that one call returned. Return the value of the last, the reply."""
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
        """Raise esper's error for `error`. For a death, add the last output of the process, or that it wrote nothing.

        If the connection broke and the process has ended, the error is a death. If the process has not ended, it is
        `ActorDoubtful`.
        """
        found = unwrapped(error, self.role, self.name)
        if METRICS in vars(found):
            self._note(here, vars(found).pop(METRICS))
        if isinstance(found, ActorDoubtful) and here.gone_soon():
            detail, doubt = f"{found.detail.removesuffix('.')}; its process has ended", found
            found = loss_of(self.role)(self.role, detail)
            found.__cause__ = doubt
        if isinstance(found, EsperError):
            found.actor, found.process = self.name, here.pid
        if isinstance(found, ActorLost):
            words = here.last_words.read()
            if words or not here.ended:
                told = f"wrote last:\n{words}" if words else WITHOUT_WORDS
                found.add_note(f"{self.name} (process {here.pid}) {told}")
        raise found from (here.ended if isinstance(found, ActorLost) and here.ended else found.__cause__)

    def _progress(self, here: Process) -> int | None:
        """Return the actor's progress counter. None: the thread `watch` of the actor did not answer in time."""
        try:
            watched: Any = here.actor.progress.options(**self._in("watch")).remote()  # Any: Ray types it loosely
            return int(self._opened(here, ray.get(watched, timeout=LOOK_EVERY_S)))
        except GetTimeoutError:  # `Patience` decides how long this may last
            return None
