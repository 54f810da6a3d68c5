"""The emergency service of a run in one process. Its event loop runs in a thread; other threads make plain calls."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from esper.emergency.emergency_service import EmergencyService
from esper.emergency.refusals import counted_refusal
from esper.errors import EmergencyUnavailable
from esper.ground.closing import at_the_end
from esper.leyline.signals import EmergencySignal

T = TypeVar("T")

_LOOK_S = 1.0
"""Seconds between two checks by a waiting call. It checks that the thread still runs, because a forked process does not
have the thread."""


class HostedEmergency:
    """The methods of `EmergencyService` as plain calls. Any thread may call them. `hosted` makes the object."""

    def __init__(self, service: EmergencyService) -> None:
        self._service = service
        self._loop = asyncio.new_event_loop()
        self._lock, self._ended, self._pid = threading.Lock(), False, os.getpid()
        self._thread = threading.Thread(target=self._run, name="esper emergency", daemon=True)
        self._thread.start()

    def publish(self, signal: EmergencySignal) -> int:
        """See `EmergencyService.publish`."""
        return self._call(self._service.publish(signal), signal.signal_id)

    def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]:
        """See `EmergencyService.pending`."""
        return self._call(self._service.pending(subscriber))

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """See `EmergencyService.acknowledge`."""
        self._call(self._service.acknowledge(subscriber, signal_ids))

    def rebind(self, generation: int) -> None:
        """See `EmergencyService.rebind`."""
        self._call(self._service.rebind(generation))

    def close(self) -> None:
        """See `EmergencyService.close`."""
        self._call(self._service.close())

    def start(self, reads_inbox: bool = True) -> None:
        """See `EmergencyService.start`."""
        self._call(self._service.start(reads_inbox))

    def stop(self, drain_s: float) -> Mapping[str, int]:
        """See `EmergencyService.stop`. The thread of the service ends, too. Call it once.

        If the wait is interrupted, for example by Ctrl-C, the wait for sinks ends and the queue is closed.
        """
        answer = self._begun(self._service.stop(drain_s), is_last=True)
        try:
            return self._result(answer)
        finally:
            self._loop.call_soon_threadsafe(self._service.end_deliveries)
            asyncio.run_coroutine_threadsafe(self._end(), self._loop)
            self._thread.join()

    async def _end(self) -> None:
        """End the loop when all its other tasks have ended."""
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        self._loop.stop()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T], signal_id: str = "") -> T:  # Any: as in `_begin`
        """Run a method in the thread, with the caller's context variables, and wait for it.

        Raises:
            EmergencyUnavailable: the service was stopped, or this process was forked and does not have the thread.
        """
        return self._result(self._begun(work, signal_id), signal_id)

    def _begun(
        self,
        work: Coroutine[Any, Any, T],  # Any: values between a coroutine and its event loop
        signal_id: str = "",
        *,
        is_last: bool = False,
    ) -> Future[T]:
        """Begin a method in the thread. If `is_last`, refuse every later call. Raises: EmergencyUnavailable."""
        with self._lock:
            if self._ended or not self._thread.is_alive():
                work.close()
                raise self._unavailable(signal_id)
            self._ended = is_last
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _result(self, answer: Future[T], signal_id: str = "") -> T:
        """Wait for the result of a method. Raises: EmergencyUnavailable: the thread has ended."""
        while not wait([answer], timeout=_LOOK_S).done:
            if not self._thread.is_alive():
                raise self._unavailable(signal_id)
        return answer.result()

    def _unavailable(self, signal_id: str) -> EmergencyUnavailable:
        """Return the error of a call that cannot be made. If the call would have published a signal, report that."""
        if os.getpid() == self._pid:
            return _counted(EmergencyUnavailable(signal_id))
        why = (
            f"process {os.getpid()} was forked from process {self._pid}, and only process {self._pid} has the queue; "
            "send the signal there, or use `esper signal`"
        )
        return _counted(EmergencyUnavailable(signal_id, why))


def _counted(error: EmergencyUnavailable) -> EmergencyUnavailable:
    """Count and report the error if it refuses a signal."""
    return counted_refusal(error, error.signal_id) if error.signal_id else error


@contextmanager
def hosted(
    service: EmergencyService,
    drain_s: float,
    undelivered: Callable[[Mapping[str, int]], None],
    *,
    reads_inbox: bool = True,
) -> Iterator[HostedEmergency]:
    """Start a service in a thread, and stop it when the block ends.

    Args:
        drain_s: As in `EmergencyService.stop`.
        undelivered: Function that is called with the result of `stop` if signals are left.
        reads_inbox: As in `EmergencyService.start`.
    """
    host = HostedEmergency(service)

    def end() -> None:
        if left := host.stop(drain_s):
            undelivered(left)

    with at_the_end(end, "stopping the emergency service"):
        host.start(reads_inbox)
        yield host
