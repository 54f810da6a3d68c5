"""The clock of esper. Timestamps use wall time, durations use monotonic time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """A source of time. Tests use a fake clock."""

    def now(self) -> datetime:
        """Return the wall time in UTC, time-zone aware."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an unspecified moment. They never decrease."""
        ...


_ahead = timedelta()


def skew(seconds: float) -> None:
    """Let the wall time of every `SystemClock` of this process differ from the machine's. Faults use it."""
    global _ahead
    _ahead = timedelta(seconds=seconds)


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        """Return the wall time in UTC, time-zone aware."""
        return datetime.now(UTC) + _ahead

    def monotonic(self) -> float:
        """Return seconds since an unspecified moment. They never decrease."""
        return time.monotonic()
