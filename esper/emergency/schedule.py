"""Decides when a signal may be sent to a subscriber. The decision depends on the level, the age, the wait after a
failed attempt, and the cap.

The cap is a limit on the number of attempts in a minute.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from esper.leyline.signals import EmergencySignal, Level

CAP_WINDOW_S = 60.0
"""Length of the sliding window of the cap, in seconds."""

_Place = tuple[int, int, str]
"""(minus the level, order, id). Signals are sent in ascending order of this key."""


@dataclass(frozen=True)
class Subscriber:
    """A receiver of signals.

    Attributes:
        capped: If true, at most `cap_per_minute` attempts are made within a minute. A HALT does not count.
        attempts: Number of failed attempts after which a delivery is a dead letter. None: no limit.
        first_s: Longest wait after the first failed attempt, in seconds. It doubles with each further failure.
        most_s: Longest wait after any failed attempt, in seconds.
    """

    name: str
    capped: bool = True
    attempts: int | None = 8
    first_s: float = 1.0
    most_s: float = 60.0

    def wait_s(self, attempts: int, draw: random.Random) -> float:
        """Return the wait after `attempts` failed attempts: a random number of seconds from 0 to the longest wait
        ("full jitter").

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
        """
        longest = min(self.most_s, self.first_s * 2.0 ** min(attempts - 1, 60))
        return draw.uniform(0.0, longest)


class Schedule:
    """The deliveries to one subscriber that are not in flight. Times are seconds of one monotonic clock.

    A delivery is in flight while it is being attempted.

    Args:
        cap: Largest number of attempts within `CAP_WINDOW_S`. None: no limit.
    """

    def __init__(self, cap: int | None) -> None:
        self._cap = cap
        self._ready: list[_Place] = []
        """Deliveries that may be attempted now, in order."""
        self._later: list[tuple[float, _Place]] = []
        """Heap of the deliveries that must wait, by the time at which they are ready. An entry may be out of date."""
        self._times: dict[str, tuple[float | None, _Place]] = {}
        """Id -> (time in `_later`, or None if the id is in `_ready`; sort key). Ids in flight are left out."""
        self._window: deque[float] = deque(maxlen=cap)
        """Times of the last attempts that count for the cap, the oldest first."""

    def add(self, signal: EmergencySignal, order: int, ready: float) -> None:
        """Add a delivery. It may be attempted from the time `ready` on."""
        self.remove(signal.signal_id)
        place = (-int(signal.level), order, signal.signal_id)
        heapq.heappush(self._later, (ready, place))
        self._times[signal.signal_id] = ready, place

    def remove(self, signal_id: str) -> None:
        """Remove a delivery, because it has ended or is in flight now."""
        if signal_id in self._times:
            later, place = self._times.pop(signal_id)
            if later is None:
                del self._ready[bisect_left(self._ready, place)]

    def waits_for(self, signal_id: str) -> bool:
        """Return whether a delivery is in this schedule. A delivery in flight is not in the schedule."""
        return signal_id in self._times

    def begin_window(self, attempts: Sequence[float]) -> None:
        """Set the times of the attempts that count for the cap, the oldest first."""
        self._window.clear()
        if self._cap is not None:
            self._window.extend(attempts)

    def count_attempt(self, level: Level, at: float) -> None:
        """Count an attempt for the cap. A HALT does not count."""
        if self._cap is not None and level is not Level.HALT:
            self._window.append(at)

    def due(self, now: float, most: int) -> list[str]:
        """Return the ids of at most `most` deliveries that may be attempted now, in order. Nothing changes."""
        self._advance(now)
        room = most if self._cap is None else min(most, self._cap - self._used(now))
        halts = bisect_left(self._ready, (-int(Level.HALT) + 1, 0, ""))
        first = self._ready[: min(halts, most)]
        rest = self._ready[halts : halts + max(0, min(room, most - len(first)))]
        return [signal_id for _, _, signal_id in (*first, *rest)]

    def next_due(self, now: float) -> float | None:
        """Return the earliest time at which `due` returns a delivery. None: the schedule is empty."""
        self._advance(now)
        free = self._free_from(now)
        times = [now if -place[0] == Level.HALT else max(now, free) for place in self._ready[:1]]
        for ready, place in self._later:
            if self._times.get(place[2]) == (ready, place):
                times.append(ready if -place[0] == Level.HALT else max(ready, free))
        return min(times, default=None)

    def _advance(self, now: float) -> None:
        """Move each delivery that has become ready from `_later` to `_ready`."""
        while self._later and self._later[0][0] <= now:
            ready, place = heapq.heappop(self._later)
            if self._times.get(place[2]) == (ready, place):
                insort(self._ready, place)
                self._times[place[2]] = None, place
        if len(self._later) > 2 * len(self._times) + 64:
            self._later = [
                (ready, place) for ready, place in self._later if self._times.get(place[2]) == (ready, place)
            ]
            heapq.heapify(self._later)

    def _used(self, now: float) -> int:
        """Return the number of counted attempts in the window that ends now."""
        while self._window and self._window[0] <= now - CAP_WINDOW_S:
            self._window.popleft()
        return len(self._window)

    def _free_from(self, now: float) -> float:
        """Return the earliest time at which the cap allows an attempt."""
        if self._cap is None or self._used(now) < self._cap:
            return now
        return self._window[0] + CAP_WINDOW_S
