"""Takes signals and orders in: durable in the queue first, then shown in the emergency word, then reported as news."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esper.emergency.queue import EmergencyQueue
from esper.emergency.settings import CONDUCTOR
from esper.emergency.word import EmergencyWord
from esper.leyline.signals import EmergencySignal, Level


class Intake:
    """The only writer of the word. One thread at a time may call it: the thread that calls the queue.

    The level of the word never falls. At the start it is raised to that of the signals which the conductor has not
    acknowledged, because an owner before may have been killed between the queue and the word.

    Args:
        news: Called after each change that may make a signal due.
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
        """As `EmergencyQueue.publish`; the word shows the signal on return."""
        self._count = max(self._count, self._queue.publish(signal))
        self._raise_to(signal.level)
        self.rebind(self._generation)
        self._news()
        return self._count

    def rebind(self, generation: int) -> None:
        """Write the word, from now on with this generation of the run."""
        self._generation = generation
        self._word.set(self._level, generation, self._count)

    def reject(self, signal_id: str, why: str) -> None:
        """As `EmergencyQueue.reject`."""
        self._queue.reject(signal_id, why)

    def retry(self, signal_ids: Sequence[str]) -> tuple[str, ...]:
        """As `EmergencyQueue.retry`."""
        done = self._queue.retry(signal_ids)
        self._news()
        return done

    def drop(self, signal_ids: Sequence[str], why: str) -> tuple[str, ...]:
        """As `EmergencyQueue.drop`."""
        return self._queue.drop(signal_ids, why)

    def _raise_to(self, level: Level) -> None:
        self._level = level if self._level is None else max(self._level, level)
