"""The queue of emergency signals: bounded, ordered by level and age, acknowledged per subscriber.

The queue is in memory only. An accepted signal is held until every subscriber has acknowledged it or the process ends.
A refused signal raises. The ids of the last 4,096 fully acknowledged signals are remembered, so that a repeated publish
is not delivered again. The queue has no locks: one thread at a time may call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from esper.errors import DependencyViolationError, EmergencyQueueFull, EmergencyUnavailable
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count

E = TypeVar("E", bound=BaseException)

HALT_PLACES = 16
"""Number of entries of the queue that only HALT signals may use."""
REMEMBERED = 4096
"""Number of fully acknowledged signals whose ids are remembered. A publisher repeats a call within a few signals."""


@dataclass
class _Held:
    """A signal that some subscriber has not acknowledged. `order` is its number among all accepted signals."""

    signal: EmergencySignal
    order: int
    waiting: set[str] = field(default_factory=set)
    """Subscribers that have not acknowledged the signal."""


class EmergencyQueue:
    """Holds published signals until all subscribers have acknowledged them.

    Args:
        capacity: Largest number of signals in the queue, including the `HALT_PLACES`.
    """

    def __init__(self, capacity: int, subscribers: Sequence[str]) -> None:
        self._capacity, self._subscribers = capacity, tuple(subscribers)
        self._held: dict[str, _Held] = {}
        self._delivered: dict[str, bytes] = {}
        """Id -> SHA-256 of the last fully acknowledged signals, oldest first; at most `REMEMBERED`."""
        self._count = 0
        self._closed = False

    def _rejected(self, signal: EmergencySignal, error: E) -> E:
        held = {"signal_id": signal.signal_id, "held": len(self._held)}
        return reported(error, "emergency_signal_rejected", Severity.CRITICAL, **held)

    def publish(self, signal: EmergencySignal) -> int:
        """Accept a signal, once per id. Returns the number of signals ever accepted.

        Raises:
            EmergencyUnavailable: the queue is closed; the signal was not accepted.
            EmergencyQueueFull: the queue is full; the signal was not accepted.
            DependencyViolationError: a different signal has the same id; this signal was not accepted.
        """
        if (known := self._known(signal.signal_id)) is not None:
            if known != _digest(signal):
                raise self._rejected(
                    signal, DependencyViolationError(f"signal {signal.signal_id}", "another body under a known id")
                )
            return self._count
        if self._closed:
            count("esper.signal.rejected")
            raise self._rejected(signal, EmergencyUnavailable(signal.signal_id))
        room = self._capacity if signal.level is Level.HALT else self._capacity - HALT_PLACES
        if len(self._held) >= room:
            count("esper.signal.rejected")
            raise self._rejected(signal, EmergencyQueueFull(signal.signal_id, self._capacity))
        self._count += 1
        self._held[signal.signal_id] = _Held(signal, self._count, set(self._subscribers))
        count("esper.signal.published")
        return self._count

    def pending(self, subscriber: str, most: int = 64) -> tuple[EmergencySignal, ...]:
        """Return up to `most` signals that a subscriber has not acknowledged: highest level first, then oldest."""
        waiting = [held for held in self._held.values() if subscriber in held.waiting]
        waiting.sort(key=lambda held: (-held.signal.level, held.order))
        return tuple(held.signal for held in waiting[:most])

    def acknowledge(self, subscriber: str, signal_id: str) -> None:
        """Record that a subscriber has handled a signal. A repeated call changes nothing."""
        held = self._held.get(signal_id)
        if held is None or subscriber not in held.waiting:
            return
        held.waiting.remove(subscriber)
        count("esper.signal.delivered")
        if not held.waiting:
            del self._held[signal_id]
            self._delivered[signal_id] = _digest(held.signal)
            if len(self._delivered) > REMEMBERED:
                del self._delivered[next(iter(self._delivered))]

    def close(self) -> None:
        """Refuse new signals from now on. Held signals are still delivered."""
        self._closed = True

    def _known(self, signal_id: str) -> bytes | None:
        held = self._held.get(signal_id)
        return _digest(held.signal) if held is not None else self._delivered.get(signal_id)

    def __len__(self) -> int:
        return len(self._held)


def _digest(signal: EmergencySignal) -> bytes:
    return hashlib.sha256(signal.model_dump_json().encode()).digest()
