"""Counters of one process. Every counter exists from the start, at 0."""

from __future__ import annotations

from threading import Lock

from esper.telemetry.context import current

Label = str | int | bool
Labels = tuple[tuple[str, str], ...]
"""Labels of one series: (name, value) pairs, sorted by name. Empty for the series without labels."""

NAMES = frozenset(
    {
        "esper.policy.decisions",
        "esper.policy.failures",
        "esper.command.admissions",
        "esper.command.rejections",
        "esper.gate.evaluations",
        "esper.seed.transitions",
        "esper.signal.published",
        "esper.signal.delivered",
        "esper.signal.rejected",
        "esper.signal.retried",
        "esper.signal.dead_lettered",
        "esper.signal.dropped",
        "esper.load.errors",
        "esper.guard.trips",
        "esper.rollbacks",
        "esper.actor.restarts",
        "esper.fallbacks",
        "esper.faults.fired",
        "esper.severe_events",
        "esper.spans.lost",
        "esper.log_records.lost",
    }
)


class Counters:
    """Monotonic counters by name and labels. Threads may share them. They are never reset."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._series: dict[str, dict[Labels, int]] = {name: {(): 0} for name in sorted(NAMES)}

    def add(self, name: str, amount: int = 1, /, **labels: Label) -> None:
        """Add `amount` to the series of `name` with exactly these labels.

        A label must not be an id, because each value of a label makes a series.

        Raises:
            ValueError: `name` is not in `NAMES`, or `amount` is negative. Both are bugs of the caller. Nothing was
                counted.
        """
        known(name)
        if amount < 0:
            raise ValueError(f"counter {name} cannot go down by {-amount}")
        key = _key(labels)
        with self._lock:
            series = self._series[name]
            series[key] = series.get(key, 0) + amount

    def total(self, name: str, /, **labels: Label) -> int:
        """Return the sum over all series of `name` that have at least these labels.

        Raises:
            ValueError: `name` is not in the table.
        """
        known(name)
        wanted = set(_key(labels))
        return sum(value for key, value in self.snapshot()[name].items() if wanted <= set(key))

    def snapshot(self) -> dict[str, dict[Labels, int]]:
        """Return a copy of all series of all names, taken at one moment."""
        with self._lock:
            return {name: dict(series) for name, series in self._series.items()}


def count(name: str, /, **labels: Label) -> None:
    """Add 1 to a counter of the current telemetry. Without telemetry, only the name is checked.

    Raises:
        ValueError: `name` is not in the table.
    """
    known(name)
    if (telemetry := current()) is not None:
        telemetry.counters.add(name, **labels)


def known(name: str) -> None:
    """Check a counter's name. Raises: ValueError: no counter has this name."""
    if name not in NAMES:
        raise ValueError(f"no counter is named {name!r}: add it to esper/telemetry/metrics.py or mend the name")


def _key(labels: dict[str, Label]) -> Labels:
    return tuple(
        (name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in sorted(labels.items())
    )
