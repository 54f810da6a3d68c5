"""Accepts signals and orders. Each is first made durable in the queue, then written into the emergency word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper.emergency.queue import EmergencyQueue
from esper.emergency.settings import CONDUCTOR
from esper.emergency.word import EmergencyWord
from esper.leyline.signals import EmergencySignal, Level


class Intake:
    """The only writer of the word. One thread at a time may call it: the thread that calls the queue.

    The level of the word never falls. At the start it rises to the highest level among the signals that the conductor
    has not acknowledged, because an earlier owner of the queue may have been killed after a write to the queue and
    before the write to the word.

    Args:
        news: Function that is called after each change that may make a signal due.
    """

    def __init__(self, queue: EmergencyQueue, word: EmergencyWord, generation: int, news: Callable[[], None]) -> None:
        self._queue, self._word, self._generation, self._news = queue, word, generation, news
        before = word.read()
        self._level, self._count = before.level, before.count
        for held in queue.outstanding():
            if CONDUCTOR in held.waiting:
                self._raise_to(held.signal.level)
        self.rebind(generation)

    def publish(self, signal: EmergencySignal) -> int:
        """See `EmergencyQueue.publish`. On return the word shows the signal."""
        self._count = max(self._count, self._queue.publish(signal))
        self._raise_to(signal.level)
        self.rebind(self._generation)
        self._news()
        return self._count

    def rebind(self, generation: int) -> None:
        """Write the word with this generation of the run, now and at every later change."""
        self._generation = generation
        self._word.set(self._level, generation, self._count)

    def reject(self, signal_id: str, why: str) -> None:
        """See `EmergencyQueue.reject`."""
        self._queue.reject(signal_id, why)

    def retry(self, signal_ids: Sequence[str]) -> tuple[str, ...]:
        """See `EmergencyQueue.retry`."""
        done = self._queue.retry(signal_ids)
        self._news()
        return done

    def drop(self, signal_ids: Sequence[str], why: str) -> tuple[str, ...]:
        """See `EmergencyQueue.drop`."""
        return self._queue.drop(signal_ids, why)

    def _raise_to(self, level: Level) -> None:
        self._level = level if self._level is None else max(self._level, level)
