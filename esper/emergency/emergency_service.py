"""The emergency service of one run: the queue, the emergency word, the deliveries to sinks, and the inbox folder.

Its methods are coroutines of one event loop, so that a publisher never waits for a sink. A call of the queue may wait
for the disk. So all calls of the queue are made in one separate thread, and the loop does not wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

from esper import faults
from esper.emergency.courier import Courier
from esper.emergency.inbox_folder import InboxFolder
from esper.emergency.intake import Intake
from esper.emergency.queue import EmergencyQueue
from esper.emergency.reading import QUEUE
from esper.emergency.refusals import counted_refusal
from esper.emergency.schedule import Subscriber
from esper.emergency.settings import CONDUCTOR, EmergencyConfig
from esper.emergency.sinks import Sink, make_sinks
from esper.emergency.word import EmergencyWord
from esper.emergency.worker import Worker
from esper.errors import EmergencyUnavailable, EsperError, RunDirectoryError
from esper.ground.clock import Clock, SystemClock
from esper.leyline.signals import EmergencySignal
from esper.telemetry.background import background_context

ENDING_S = 20.0
"""Longest wait in seconds for the process that has the queue. If the driver of a run was killed, Ray ends the emergency
actor of that run some seconds later, and a resume may start before that.
"""
AGAIN_S = 0.1
"""Seconds between two attempts to open the queue."""
LOOK_S = 0.05
"""Seconds between two reads of the inbox folder. All reads together take 0.4 % of a CPU."""


class EmergencyService:
    """Call `open`, then `start`, then the methods of the port in any order, and last `stop`.

    Only the worker's thread uses the queue and the intake, and reads files of the inbox. If a background task fails,
    for example because of a full disk, every later call raises the error of the task.
    """

    def __init__(
        self,
        folder: Path,
        queue: EmergencyQueue,
        word: EmergencyWord,
        sinks: Sequence[Sink],
        run_id: str,
        generation: int,
        clock: Clock,
    ) -> None:
        self._queue = queue
        self._intake = Intake(queue, word, generation, self._wake)
        self._inbox = InboxFolder(folder, self._intake, run_id, clock)
        self._worker = Worker("esper emergency queue")
        self._couriers = [Courier(queue, self._worker, sink) for sink in sinks]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliveries: list[asyncio.Task[None]] = []
        self._looking: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None
        self._stopped = False

    @classmethod
    def open(
        cls,
        folder: Path,
        word: EmergencyWord,
        config: EmergencyConfig,
        *,
        run_id: str,
        generation: int,
        environment: Mapping[str, str],
        clock: Clock | None = None,
        draw: random.Random | None = None,
    ) -> Self:
        """Open the queue of a run, and become the only writer of the run's emergency word. If another process owns the
        queue, wait up to `ENDING_S` seconds for its end.

        No signal is sent before `start`. If the conductor has not acknowledged a signal whose level is above the level
        of the word, the word gets the signal's level.

        Args:
            folder: `RUN/emergency`. The folder is made if it is missing.
            environment: The environment variables. The config of a sink may name some of them.
            clock: None: the clock of the machine.
            draw: Random generator for the waits after failed attempts. None: the generator of the operating system.

        Raises:
            ConfigError: the address or token of a sink cannot be read or used. Nothing was written.
            RunDirectoryError: another process owns the queue, and goes on.
            StoreCorrupt: the content of the folder is not a queue that esper wrote.
            StoreWriteFailed: the folder or the queue could not be created, locked, repaired or synced.
        """
        clock = clock or SystemClock()
        sinks = make_sinks(config.sinks, folder, environment)
        with ExitStack() as undo:
            opening = partial(
                EmergencyQueue.open,
                folder / QUEUE,
                capacity=config.capacity,
                subscribers=subscribers(config),
                clock=clock,
                draw=draw,
                cap_per_minute=config.cap_per_minute,
            )
            queue = undo.enter_context(_when_free(opening))
            service = cls(folder, queue, word, sinks, run_id, generation, clock)
            undo.pop_all()
        return service

    async def start(self, reads_inbox: bool = True) -> None:
        """Begin to deliver signals and, if `reads_inbox`, to read the inbox. Call it once."""
        assert self._loop is None, "start() was called twice"
        self._loop = asyncio.get_running_loop()
        self._deliveries = [self._begun(courier.run(), f"deliver to {courier.name}") for courier in self._couriers]
        self._looking = [self._begun(self._look(), "read the inbox")] if reads_inbox else []

    # -- the port -----------------------------------------------------------------------------------------------------

    async def publish(self, signal: EmergencySignal) -> int:
        """Accept a signal. On return it is durable, and the word shows it. A repeated call with the same signal changes
        nothing.

        Returns:
            The number of signals that the queue has accepted since it was created.

        Raises:
            EmergencyUnavailable: the run is ending or has ended; the signal was not accepted.
            EmergencyQueueFull: the queue is full; the signal was not accepted.
            DependencyViolationError: the checksum is missing or wrong, or a different signal has the same id; this
                signal was not accepted.
            StoreWriteFailed: the signal is not durable and was not accepted.
        """
        if self._stopped:
            raise counted_refusal(EmergencyUnavailable(signal.signal_id), signal.signal_id)
        if isinstance(self._failure, EsperError):
            raise counted_refusal(self._failure, signal.signal_id)
        self._check()
        faults.point("emergency.publish")
        return await self._worker.call(self._intake.publish, signal)

    async def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]:
        """Return some of the signals that a subscriber has not acknowledged, the highest level first.

        The result is empty if the subscriber has acknowledged all signals.
        """
        self._check()
        faults.point("emergency.pending")
        due = await self._worker.call(self._queue.due, subscriber)
        return tuple(delivery.signal for delivery in due)

    async def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """Record that a subscriber has received signals and made them durable. The record is durable on return.

        Raises:
            StoreWriteFailed: nothing was acknowledged.
        """
        self._check()
        await self._worker.call(self._queue.acknowledge, subscriber, signal_ids)

    async def rebind(self, generation: int) -> None:
        """Write the number of a new generation into the word."""
        self._check()
        await self._worker.call(self._intake.rebind, generation)

    async def close(self) -> None:
        """Accept no more signals. Requests in the inbox stay there for the next process that opens the queue."""
        self._check()
        await self._close()

    async def stop(self, drain_s: float) -> Mapping[str, int]:
        """Close, wait for the deliveries, and close the queue. Nothing else may be called afterwards.

        Args:
            drain_s: Largest number of seconds to wait for deliveries. If no attempt is due within this time, there is
                no wait.

        Returns: Name of a sink -> number of signals that the sink has not confirmed. These signals stay in the queue.
            Dead letters are not counted. Empty: every sink has confirmed all signals that are not dead letters.

        Raises:
            EsperError: a background task or the queue failed. The queue is closed.
        """
        try:
            await self._close()
            await self._drain(drain_s)
            left = await self._worker.call(self._undelivered)
        finally:
            self._stopped = True
            await self._cancel(self._deliveries)
            try:
                await self._worker.call(self._inbox.close)
                await self._worker.call(self._queue.close)
            finally:
                self._worker.stop()
        self._check()
        return left

    def end_deliveries(self) -> None:
        """End all deliveries. So a `stop` in progress no longer waits for sinks. Call it in the event loop."""
        for task in self._deliveries:
            task.cancel()

    # -- in the worker's thread ---------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let all couriers look for signals that are due."""
        assert self._loop is not None, "call start() first"
        for courier in self._couriers:
            self._loop.call_soon_threadsafe(courier.wake)

    def _undelivered(self) -> dict[str, int]:
        outstanding = self._queue.outstanding()
        left = {
            courier.name: sum(
                1 for held in outstanding if courier.name in held.waiting and held.waiting[courier.name].dead is None
            )
            for courier in self._couriers
        }
        return {name: number for name, number in left.items() if number}

    # -- in the loop --------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Carry out the requests in the inbox, one by one, so that a publisher waits for at most one request."""
        while True:
            for name in await self._worker.call(self._inbox.names):
                await self._worker.call(self._inbox.take, name)
            await asyncio.sleep(LOOK_S)

    async def _close(self) -> None:
        await self._cancel(self._looking)
        await self._worker.call(self._queue.close_to_publishers)

    async def _drain(self, drain_s: float) -> None:
        if not self._deliveries or self._failure is not None:
            return
        for courier in self._couriers:
            courier.end_by(asyncio.get_running_loop().time() + drain_s)
        await asyncio.wait(self._deliveries, timeout=drain_s)

    def _begun(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"esper: {name}", context=background_context())
        task.add_done_callback(self._note_failure)
        return task

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self._failure is None:
            self._failure = error

    async def _cancel(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Cancel tasks, and wait for their end. `_note_failure` records their failures."""
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _check(self) -> None:
        """Raises: EsperError: a background task has failed."""
        if self._failure is not None:
            raise self._failure


def subscribers(config: EmergencyConfig) -> tuple[Subscriber, ...]:
    """Return the subscribers of a run's queue: the conductor and the sinks."""
    return (
        Subscriber(CONDUCTOR, capped=False, attempts=None),
        *(
            Subscriber(sink.name, attempts=config.attempts, first_s=config.first_retry_s, most_s=config.longest_retry_s)
            for sink in config.sinks
        ),
    )


def _when_free(opening: Callable[[], EmergencyQueue]) -> EmergencyQueue:
    """Open the queue. While another process owns it, try again for `ENDING_S` seconds."""
    began = time.monotonic()
    while True:
        try:
            return opening()
        except RunDirectoryError as error:
            if not isinstance(error.__cause__, BlockingIOError) or time.monotonic() - began > ENDING_S:
                raise
        time.sleep(AGAIN_S)
