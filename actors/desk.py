"""What the emergency actor holds. It imports no torch, which is most of the time that a process takes to start."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from esper import faults
from esper.emergency.queue import EmergencyQueue
from esper.emergency.word import EmergencyWord
from esper.leyline.signals import EmergencySignal, Level

CONDUCTOR = "conductor"
"""The one subscriber of the emergency queue that a run always has."""


def emergency(capacity: int, word: Path, generation: int) -> EmergencyDesk:
    """The emergency queue and the one writer of its word."""
    return EmergencyDesk(EmergencyQueue(capacity, (CONDUCTOR,)), EmergencyWord.attach(word), generation)


class EmergencyDesk:
    """The queue with its word: a signal that is taken shows in the word before `publish` returns.

    `publish` comes in a thread of its own, so one thing is done at a time.
    """

    def __init__(self, queue: EmergencyQueue, word: EmergencyWord, generation: int) -> None:
        self._queue, self._word, self._generation = queue, word, generation
        before = word.read()  # what a desk that died has said of signals still holds
        self._level, self._count = before.level, before.count
        self._one_at_a_time = threading.Lock()

    def publish(self, signal: EmergencySignal) -> int:
        """Take a signal. Returns how many were ever taken.

        Raises:
            EmergencyUnavailable: the run is ending; the signal was not taken.
            EmergencyQueueFull: there is no place; the signal was not taken.
            DependencyViolationError: another signal came under the same id; this one was not taken.
        """
        faults.point("emergency.publish")
        with self._one_at_a_time:
            self._count = max(self._count, self._queue.publish(signal))
            self._level = max(self._level or Level.NOTICE, signal.level)
            self._word.set(self._level, self._generation, self._count)
        return self._count

    def rebind(self, generation: int) -> None:
        """Have the word say a newer generation from now on."""
        with self._one_at_a_time:
            self._generation = generation
            self._word.set(self._level, generation, self._count)

    def pending(self, subscriber: str, most: int = 64) -> tuple[EmergencySignal, ...]:
        """Signals that a subscriber has not acknowledged, the most urgent first."""
        faults.point("emergency.pending")
        with self._one_at_a_time:
            return self._queue.pending(subscriber, most)

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """A subscriber has dealt with signals."""
        with self._one_at_a_time:
            for signal_id in signal_ids:
                self._queue.acknowledge(subscriber, signal_id)

    def close(self) -> None:
        """Take no new signal from now on."""
        with self._one_at_a_time:
            self._queue.close()
