"""The state of the emergency queue: which signals wait for whom, and which are finished.

The state follows from the records of the log alone, so a process that opens the log has the state of the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from esper.emergency.records import (
    Acknowledged,
    Attempt,
    Dead,
    DeliveryState,
    Dropped,
    Held,
    Put,
    Record,
    Rejected,
    Retry,
    Revived,
    Summary,
)
from esper.leyline.signals import EmergencySignal, Level

REMEMBERED = 4096
"""Number of finished signals whose ids are remembered. A publisher repeats a call within a few signals."""


class FinishedIds:
    """Ids and checksums of the last `REMEMBERED` finished signals.

    If there are more, those of the oldest generation go first, the oldest of them first: a publisher of an older
    generation repeats no call.
    """

    def __init__(self, finished: Iterable[tuple[int, str, str]] = ()) -> None:
        self._checksums: dict[str, str] = {}
        self._by_generation: dict[int, dict[str, None]] = {}
        for generation, signal_id, checksum in finished:
            self.add(generation, signal_id, checksum)

    def add(self, generation: int, signal_id: str, checksum: str) -> None:
        """Remember a signal, and forget another one if there are too many."""
        if signal_id in self._checksums:
            return
        if len(self._checksums) >= REMEMBERED:
            self._forget_oldest()
        self._checksums[signal_id] = checksum
        self._by_generation.setdefault(generation, {})[signal_id] = None

    def checksum(self, signal_id: str) -> str | None:
        """Return the checksum of a remembered signal."""
        return self._checksums.get(signal_id)

    def all(self) -> tuple[tuple[int, str, str], ...]:
        """Return generation, id and checksum of all remembered signals, in an order for a new object."""
        return tuple((g, one, self._checksums[one]) for g, ids in sorted(self._by_generation.items()) for one in ids)

    def _forget_oldest(self) -> None:
        generation = min(self._by_generation)
        ids = self._by_generation[generation]
        oldest = next(iter(ids))
        del ids[oldest], self._checksums[oldest]
        if not ids:
            del self._by_generation[generation]


@dataclass
class HeldSignal:
    """A signal with a place in the queue. `order` is its number among all accepted signals."""

    signal: EmergencySignal
    order: int
    waiting: dict[str, DeliveryState]
    """State for each subscriber that has not acknowledged the signal."""


@dataclass
class QueueState:
    """What the records of a log say.

    Args:
        cap: Number of last attempts per subscriber whose time is stored.
    """

    cap: int
    published: int = 0
    """Number of signals ever accepted."""
    held: dict[str, HeldSignal] = field(default_factory=dict)
    finished: FinishedIds = field(default_factory=FinishedIds)
    attempted: dict[str, deque[float]] = field(default_factory=dict)
    """Subscriber -> Unix times of its last attempts that count for the cap. A HALT does not count."""

    def apply(self, record: Record) -> None:
        """Change the state as a record says. What it says of signals that have no place is ignored."""
        _APPLY[type(record)](self, record)

    def checksum(self, signal_id: str) -> str | None:
        """Return the checksum of a signal that was accepted. None: it was not, or it was forgotten."""
        held = self.held.get(signal_id)
        return held.signal.checksum if held is not None else self.finished.checksum(signal_id)

    def delivery(self, subscriber: str, signal_id: str) -> DeliveryState | None:
        """Return the state of a delivery. None: the subscriber is not waited for."""
        held = self.held.get(signal_id)
        return held.waiting.get(subscriber) if held is not None else None

    def attempts_of(self, subscriber: str) -> Sequence[float]:
        """Return the Unix times of a subscriber's last attempts that count for the cap, the oldest first."""
        return tuple(self.attempted[subscriber]) if subscriber in self.attempted else ()

    def records(self) -> list[Record]:
        """Return records that make this state."""
        attempted = {subscriber: tuple(times) for subscriber, times in self.attempted.items() if times}
        summary = Summary(
            published=self.published, held=tuple(self.held), finished=self.finished.all(), attempted=attempted
        )
        held = [Held(order=one.order, signal=one.signal, waiting=one.waiting) for one in self.held.values()]
        return [summary, *held]

    def _put(self, record: Put) -> None:
        self.published = max(self.published, record.order)
        if self.checksum(record.signal.signal_id) is None:
            waiting = {subscriber: DeliveryState() for subscriber in record.to}
            self.held[record.signal.signal_id] = HeldSignal(record.signal, record.order, waiting)

    def _attempt(self, record: Attempt) -> None:
        times = self.attempted.setdefault(record.subscriber, deque(maxlen=self.cap))
        for signal_id in record.ids:
            if (found := self.delivery(record.subscriber, signal_id)) is not None:
                changed = found.model_copy(update={"attempts": found.attempts + 1})
                self.held[signal_id].waiting[record.subscriber] = changed
                if self.held[signal_id].signal.level is not Level.HALT:
                    times.append(record.at)

    def _acknowledge(self, record: Acknowledged) -> None:
        for signal_id in record.ids:
            self._end(record.subscriber, signal_id)

    def _drop(self, record: Dropped) -> None:
        for signal_id in record.ids:
            if (held := self.held.get(signal_id)) is not None:
                for subscriber in [record.subscriber] if record.subscriber else list(held.waiting):
                    self._end(subscriber, signal_id)

    def _end(self, subscriber: str, signal_id: str) -> None:
        """Wait for one subscriber less; a signal that waits for none is finished."""
        if self.delivery(subscriber, signal_id) is None:
            return
        held = self.held[signal_id]
        del held.waiting[subscriber]
        if not held.waiting:
            del self.held[signal_id]
            self.finished.add(held.signal.generation, signal_id, held.signal.checksum)

    def _retry(self, record: Retry) -> None:
        self._set(
            record.subscriber,
            record.signal_id,
            DeliveryState(attempts=record.attempts, ready_at=record.ready_at),
        )

    def _bury(self, record: Dead) -> None:
        self._set(record.subscriber, record.signal_id, DeliveryState(attempts=record.attempts, dead=record.why))

    def _revive(self, record: Revived) -> None:
        for held in (self.held[one] for one in record.ids if one in self.held):
            held.waiting |= {name: DeliveryState() for name, found in held.waiting.items() if found.dead is not None}

    def _set(self, subscriber: str, signal_id: str, state: DeliveryState) -> None:
        if self.delivery(subscriber, signal_id) is not None:
            self.held[signal_id].waiting[subscriber] = state

    def _hold(self, record: Held) -> None:
        self.held[record.signal.signal_id] = HeldSignal(record.signal, record.order, dict(record.waiting))

    def _summary(self, record: Summary) -> None:
        self.published = record.published
        self.held = {signal_id: self.held[signal_id] for signal_id in record.held if signal_id in self.held}
        self.finished = FinishedIds(record.finished)
        self.attempted = {name: deque(times, maxlen=self.cap) for name, times in record.attempted.items()}

    def _reject(self, record: Rejected) -> None:
        """Nothing: the signal was not accepted."""


_APPLY: dict[type[Record], Callable[[QueueState, Any], None]] = {  # Any: a record of the type of the key
    Put: QueueState._put,
    Attempt: QueueState._attempt,
    Acknowledged: QueueState._acknowledge,
    Dead: QueueState._bury,
    Rejected: QueueState._reject,
    Retry: QueueState._retry,
    Dropped: QueueState._drop,
    Revived: QueueState._revive,
    Held: QueueState._hold,
    Summary: QueueState._summary,
}


def in_order(held: Iterable[HeldSignal]) -> Sequence[HeldSignal]:
    """Return signals by level, the highest first, then by age, the oldest first."""
    return sorted(held, key=lambda one: (-one.signal.level, one.order))
