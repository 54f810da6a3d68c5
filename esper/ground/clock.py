"""The clock of esper. Timestamps use wall time, durations use monotonic time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of time. Tests use a fake clock."""

    def now(self) -> datetime:
        """Return the wall time in UTC, time-zone aware."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an unspecified moment. They never decrease."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        """Return the wall time in UTC, time-zone aware."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since an unspecified moment. They never decrease."""
        return time.monotonic()
