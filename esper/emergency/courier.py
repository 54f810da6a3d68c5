"""Delivers signals from the queue to one sink, one at a time: the highest level first, then the oldest first."""

from __future__ import annotations

import asyncio

from esper.emergency.queue import Delivery, EmergencyQueue
from esper.emergency.sinks import Sink
from esper.emergency.worker import Worker
from esper.errors import SinkFailed
from esper.leyline.signals import EmergencySignal
from esper.telemetry.context import span


class Courier:
    """The deliveries to one sink. The worker's thread calls the queue.

    A signal is acknowledged when the sink has confirmed it. If `run` is cancelled during a `send`, the signal stays in
    the queue, and the next process that opens the queue sends it again.
    """

    def __init__(self, queue: EmergencyQueue, worker: Worker, sink: Sink) -> None:
        self._queue, self._worker, self._sink = queue, worker, sink
        self._news = asyncio.Event()
        self._until: float | None = None

    @property
    def name(self) -> str:
        """Name of the subscriber."""
        return self._sink.name

    def wake(self) -> None:
        """Let `run` look for signals that are due. Call this method in the event loop, after a change of the queue."""
        self._news.set()

    def end_by(self, until: float) -> None:
        """Let `run` return as soon as no signal is due before `until`, a time of the loop's clock in seconds."""
        self._until = until
        self.wake()

    async def run(self) -> None:
        """Deliver signals until the time that `end_by` set, or until a cancellation.

        Raises:
            StoreWriteFailed: the queue could not record a delivery.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            await self.deliver_due()
            wait_s = await self._worker.call(self._queue.next_due_s, self.name)
            if self._until is not None and (wait_s is None or loop.time() + wait_s > self._until):
                return
            timer = None if wait_s is None else loop.call_later(wait_s, self._news.set)
            await self._news.wait()
            if timer is not None:
                timer.cancel()

    async def deliver_due(self) -> None:
        """Deliver signals until none is due."""
        while (delivery := await self._worker.call(self._begin)) is not None:
            try:
                await self._send(delivery.signal)
            except SinkFailed:
                continue  # `_send` has recorded it
            await self._worker.call(self._queue.acknowledge, self.name, [delivery.signal.signal_id])

    async def _send(self, signal: EmergencySignal) -> None:
        """Send a signal in a new trace, because the trace of its sender may have ended long ago.

        A failure is recorded before the span ends, so that its severe event is on the span of the attempt.

        Raises:
            SinkFailed: the attempt failed. The queue has recorded that.
            StoreWriteFailed: the attempt failed, and the queue could not record that.
        """
        with span(
            "send esper.emergency",
            role="emergency",
            links_to=(signal.traceparent,),
            new_trace=True,
            sink=self.name,
            signal_id=signal.signal_id,
            level=signal.level.name,
        ):
            try:
                await self._sink.send(signal)
            except SinkFailed as failed:
                await self._worker.call(self._queue.failed, self.name, signal.signal_id, failed.why)
                raise

    def _begin(self) -> Delivery | None:
        """Record an attempt for the first signal that is due, and return the delivery. None: no signal is due."""
        due = self._queue.due(self.name, 1)
        self._queue.attempt(self.name, [one.signal.signal_id for one in due])
        return due[0] if due else None
