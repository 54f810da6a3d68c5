"""The queue of emergency signals: bounded, by level and age, acknowledged per subscriber. It drops nothing in silence.

It lives in memory. What is taken is held until every subscriber has acknowledged it or the process ends. The ids of the
last 4,096 signals that all subscribers have acknowledged are known: one of these that comes again is not taken again.
It is not made for several threads at once.
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
"""Places that only HALT may take."""
REMEMBERED = 4096
"""Acknowledged signals whose ids are still known: a publisher that repeats a call does so within a few of them."""


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
        self._delivered: dict[str, bytes] = {}
        """Digest by id of the last signals that every subscriber has acknowledged, oldest first."""
        self._count = 0
        self._closed = False

    def _rejected(self, signal: EmergencySignal, error: E) -> E:
        held = {"signal_id": signal.signal_id, "held": len(self._held)}
        return reported(error, "emergency_signal_rejected", Severity.CRITICAL, **held)

    def publish(self, signal: EmergencySignal) -> int:
        """Take a signal; a known id is taken once. Returns how many signals were ever taken.

        Raises:
            EmergencyUnavailable: the queue is closed; the signal was not taken.
            EmergencyQueueFull: there is no place; the signal was not taken.
            DependencyViolationError: another signal came under the same id; this one was not taken.
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
            self._delivered[signal_id] = _digest(held.signal)
            if len(self._delivered) > REMEMBERED:
                del self._delivered[next(iter(self._delivered))]

    def close(self) -> None:
        """Take no new signal from now on; what is held is still delivered."""
        self._closed = True

    def _known(self, signal_id: str) -> bytes | None:
        held = self._held.get(signal_id)
        return _digest(held.signal) if held is not None else self._delivered.get(signal_id)

    def __len__(self) -> int:
        return len(self._held)


def _digest(signal: EmergencySignal) -> bytes:
    return hashlib.sha256(signal.model_dump_json().encode()).digest()
