"""The queue of emergency signals: bounded, by level and age, acknowledged per subscriber. It drops nothing in silence.

It lives in memory. What is taken is held until every subscriber has acknowledged it or the process ends. It is not made
for several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.errors import DependencyViolationError, EmergencyQueueFull
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import count

HALT_PLACES = 16
"""Places that only HALT may take."""


@dataclass
class _Held:
    signal: EmergencySignal
    order: int
    waiting: set[str] = field(default_factory=set)
    """Subscribers that have not acknowledged it."""


class EmergencyQueue:
    """Signals between those who publish and those who subscribe."""

    def __init__(self, capacity: int, subscribers: Sequence[str]) -> None:
        self._capacity, self._subscribers = capacity, tuple(subscribers)
        self._held: dict[str, _Held] = {}
        self._known: dict[str, EmergencySignal] = {}
        self._count = 0

    def publish(self, signal: EmergencySignal) -> int:
        """Take a signal; a known id is taken once. Returns how many signals were ever taken.

        Raises:
            EmergencyQueueFull: there is no place; the signal was not taken.
            DependencyViolationError: another signal came under the same id; this one was not taken.
        """
        if signal.signal_id in self._known:
            if self._known[signal.signal_id] != signal:
                severe("emergency_signal_rejected", Severity.CRITICAL, signal_id=signal.signal_id, held=len(self._held))
                raise DependencyViolationError(f"signal {signal.signal_id}", "another body under a known id")
            return self._count
        room = self._capacity if signal.level is Level.HALT else self._capacity - HALT_PLACES
        if len(self._held) >= room:
            severe("emergency_signal_rejected", Severity.CRITICAL, signal_id=signal.signal_id, held=len(self._held))
            count("esper.signal.rejected")
            raise EmergencyQueueFull(signal.signal_id, self._capacity)
        self._count += 1
        self._known[signal.signal_id] = signal
        self._held[signal.signal_id] = _Held(signal, self._count, set(self._subscribers))
        count("esper.signal.published")
        return self._count

    def pending(self, subscriber: str, most: int = 64) -> tuple[EmergencySignal, ...]:
        """Signals that a subscriber has not acknowledged: the highest level first, then the oldest."""
        waiting = [held for held in self._held.values() if subscriber in held.waiting]
        waiting.sort(key=lambda held: (-held.signal.level, held.order))
        return tuple(held.signal for held in waiting[:most])

    def acknowledge(self, subscriber: str, signal_id: str) -> None:
        """A subscriber has dealt with a signal. Saying so twice is harmless."""
        held = self._held.get(signal_id)
        if held is None or subscriber not in held.waiting:
            return
        held.waiting.remove(subscriber)
        count("esper.signal.delivered")
        if not held.waiting:
            del self._held[signal_id]

    def __len__(self) -> int:
        return len(self._held)
