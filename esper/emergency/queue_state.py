"""The state of the emergency queue: the signals in it, their deliveries, and the ids of signals that have left it.

The state depends only on the records of the log. So a process that opens the log has the same state as the process
that wrote it.
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

_NEW = DeliveryState()
"""State of a delivery before its first attempt. All deliveries share this object, because it is frozen."""
REMEMBERED = 4096
"""Number of finished signals whose ids are remembered. A publisher repeats a call soon, so this number is large enough.
"""


class FinishedIds:
    """Ids and checksums of the last `REMEMBERED` finished signals.

    A signal is finished if it has left the queue. If more signals have finished, those of the oldest generation are
    forgotten first, because a publisher of an older generation does not repeat calls. Within a generation, the oldest
    signals are forgotten first.
    """

    def __init__(self, finished: Iterable[tuple[int, str, str]] = ()) -> None:
        self._checksums: dict[str, str] = {}
        self._by_generation: dict[int, dict[str, None]] = {}
        for generation, signal_id, checksum in finished:
            self.add(generation, signal_id, checksum)

    def add(self, generation: int, signal_id: str, checksum: str) -> None:
        """Remember a signal. If there are too many signals, forget another signal."""
        if signal_id in self._checksums:
            return
        if len(self._checksums) >= REMEMBERED:
            self._forget_oldest()
        self._checksums[signal_id] = checksum
        self._by_generation.setdefault(generation, {})[signal_id] = None

    def checksum(self, signal_id: str) -> str | None:
        """Return the checksum of a remembered signal. None: the signal is not remembered."""
        return self._checksums.get(signal_id)

    def all(self) -> tuple[tuple[int, str, str], ...]:
        """Return generation, id and checksum of all remembered signals, in an order for `__init__`."""
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
    """A signal in the queue. `order` is the number of the signal among all accepted signals."""

    signal: EmergencySignal
    order: int
    waiting: dict[str, DeliveryState]
    """State for each subscriber that has not acknowledged the signal."""


@dataclass
class QueueState:
    """The state of a queue after all records of its log.

    Args:
        cap: Number of attempts whose times are stored for each subscriber. These are the last attempts.
    """

    cap: int
    published: int = 0
    """Number of signals that were accepted since the queue was created."""
    held: dict[str, HeldSignal] = field(default_factory=dict)
    finished: FinishedIds = field(default_factory=FinishedIds)
    attempted: dict[str, deque[float]] = field(default_factory=dict)
    """Subscriber -> Unix times of its last attempts that count for the cap. A HALT does not count."""

    def apply(self, record: Record) -> None:
        """Apply a record to the state. The parts of the record about signals that are not in the queue are ignored."""
        _APPLY[type(record)](self, record)

    def checksum(self, signal_id: str) -> str | None:
        """Return the checksum of an accepted signal. None: the signal was not accepted, or it was forgotten."""
        held = self.held.get(signal_id)
        return held.signal.checksum if held is not None else self.finished.checksum(signal_id)

    def delivery(self, subscriber: str, signal_id: str) -> DeliveryState | None:
        """Return the state of a delivery. None: the signal does not wait for this subscriber."""
        held = self.held.get(signal_id)
        return held.waiting.get(subscriber) if held is not None else None

    def attempts_of(self, subscriber: str) -> Sequence[float]:
        """Return the Unix times of a subscriber's last attempts that count for the cap, the oldest first."""
        return tuple(self.attempted[subscriber]) if subscriber in self.attempted else ()

    def records(self) -> list[Record]:
        """Return records from which a new object gets this state."""
        attempted = {subscriber: tuple(times) for subscriber, times in self.attempted.items() if times}
        summary = Summary(
            published=self.published, held=tuple(self.held), finished=self.finished.all(), attempted=attempted
        )
        held = [Held(order=one.order, signal=one.signal, waiting=one.waiting) for one in self.held.values()]
        return [summary, *held]

    def _put(self, record: Put) -> None:
        self.published = max(self.published, record.order)
        if self.checksum(record.signal.signal_id) is None:
            waiting = dict.fromkeys(record.to, _NEW)
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
        """End the delivery of a signal to one subscriber. If it was the last delivery, the signal is finished."""
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
        """Do nothing, because the signal was not accepted."""


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
