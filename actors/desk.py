"""The object of the emergency actor: the queue of signals, and the emergency word. It imports no torch, so that it
starts quickly.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from esper import faults
from esper.emergency.queue import EmergencyQueue
from esper.emergency.schedule import Subscriber
from esper.emergency.word import EmergencyWord
from esper.leyline.signals import EmergencySignal, Level

CONDUCTOR = "conductor"
"""The one subscriber that every run's emergency queue has."""


class EmergencyPort(Protocol):
    """The emergency actor, as its callers see it: anybody publishes; a subscriber calls `pending`, then `acknowledge`.

    The order of calls at the end of a run is `close`, then `pending` and `acknowledge` until no signal is left.
    """

    def publish(self, signal: EmergencySignal) -> int:
        """Take a signal, and show its level in the emergency word before this returns. May be called in any thread.

        The same signal may be published again: it is taken once.

        Returns:
            How many signals were ever taken.

        Raises:
            EmergencyUnavailable: the run is ending; the signal was not taken.
            EmergencyQueueFull: the queue is full; the signal was not taken.
            DependencyViolationError: another signal has the same id; this one was not taken.
        """
        ...

    def rebind(self, generation: int) -> None:
        """Show a newer generation in the word from now on."""
        ...

    def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]:
        """Return some signals that a subscriber has not acknowledged, the most urgent first; empty if all are
        acknowledged."""
        ...

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """Remove signals from what is pending for a subscriber."""
        ...

    def close(self) -> None:
        """Take no new signal from now on."""
        ...


def emergency(capacity: int, word: Path, generation: int) -> EmergencyDesk:
    """Make the emergency actor's object: the queue, and the only writer of the word in the file `word`."""
    subscribers = (Subscriber(CONDUCTOR, capped=False, attempts=None),)
    queue = EmergencyQueue.open(word.with_name("queue"), capacity=capacity, subscribers=subscribers)
    return EmergencyDesk(queue, EmergencyWord.attach(word), generation)


class EmergencyDesk:
    """The `EmergencyPort` itself. Its actor calls `publish` in a thread of its own, all other methods in another.

    `_lock` guards the queue, the word, and all other fields.
    """

    def __init__(self, queue: EmergencyQueue, word: EmergencyWord, generation: int) -> None:
        self._queue, self._word, self._generation = queue, word, generation
        before = word.read()  # an earlier desk's level and count stay in the word, though its queue is lost
        self._level, self._count = before.level, before.count
        self._lock = threading.Lock()

    def publish(self, signal: EmergencySignal) -> int:
        """See `EmergencyPort`."""
        faults.point("emergency.publish")
        with self._lock:
            self._count = max(self._count, self._queue.publish(signal))
            self._level = max(self._level or Level.NOTICE, signal.level)
            self._word.set(self._level, self._generation, self._count)
        return self._count

    def rebind(self, generation: int) -> None:
        """See `EmergencyPort`."""
        with self._lock:
            self._generation = generation
            self._word.set(self._level, generation, self._count)

    def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]:
        """See `EmergencyPort`."""
        faults.point("emergency.pending")
        with self._lock:
            return tuple(delivery.signal for delivery in self._queue.due(subscriber))

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """See `EmergencyPort`."""
        with self._lock:
            self._queue.acknowledge(subscriber, signal_ids)

    def close(self) -> None:
        """See `EmergencyPort`."""
        with self._lock:
            self._queue.close_to_publishers()
