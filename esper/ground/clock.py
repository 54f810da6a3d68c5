"""The clock of esper: wall time for timestamps that people read, monotonic time for durations."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of time. Tests pass a fake one."""

    def now(self) -> datetime:
        """Wall time, UTC, time-zone aware."""
        ...

    def monotonic(self) -> float:
        """Seconds from an unstated origin; never goes back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Wall time, UTC, time-zone aware."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds from an unstated origin; never goes back."""
        return time.monotonic()
