"""The metrics of a process at one moment, in a form that is sent with each answer of an actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from esper.telemetry.metric_table import Labels

V = TypeVar("V")

Durations = tuple[tuple[int, ...], float]
"""The number of durations in each bucket, and their sum in seconds."""


@dataclass(frozen=True)
class MetricSnapshot:
    """Values by name and labels. A counter or histogram that is missing is 0; a gauge that is missing has no value."""

    number: int = 0
    """Of two snapshots of one process, the later one has the larger number."""
    counters: Mapping[str, Mapping[Labels, int]] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[Labels, Durations]] = field(default_factory=dict)
    gauges: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)

    def total(self, name: str) -> int:
        """Return the sum over all series of a counter."""
        return sum(self.counters[name].values()) if name in self.counters else 0

    def plus(self, other: MetricSnapshot) -> MetricSnapshot:
        """Return the sums of two snapshots of different processes, or of the same gauge in two processes."""
        return MetricSnapshot(
            0,
            _summed(self.counters, other.counters, lambda one, two: one + two),
            _summed(self.histograms, other.histograms, _added),
            _summed(self.gauges, other.gauges, lambda one, two: one + two),
        )

    def outlived(self) -> MetricSnapshot:
        """Return what stays of a process that has ended: its counters and histograms, without its gauges."""
        return MetricSnapshot(0, self.counters, self.histograms)


def _added(one: Durations, two: Durations) -> Durations:
    return tuple(a + b for a, b in zip(one[0], two[0], strict=True)), one[1] + two[1]


def _summed(
    one: Mapping[str, Mapping[Labels, V]], two: Mapping[str, Mapping[Labels, V]], add: Callable[[V, V], V]
) -> dict[str, dict[Labels, V]]:
    found = {name: dict(series) for name, series in one.items()}
    for name, series in two.items():
        mine = found.setdefault(name, {})
        for key, value in series.items():
            mine[key] = add(mine[key], value) if key in mine else value
    return found
