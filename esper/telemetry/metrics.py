"""Counters, histograms and gauges of one process. Every counter and histogram exists from the start, at 0."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import perf_counter

from esper.telemetry.context import current
from esper.telemetry.metric_snapshot import MetricSnapshot
from esper.telemetry.metric_table import COUNTERS, GAUGES, HISTOGRAMS, Labels

Label = str | int | bool

NAMES = frozenset(COUNTERS)


class Counters:
    """Monotonic counters by name and labels. Threads may share them. They are never reset."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._series = {name: dict.fromkeys(COUNTERS[name].series(), 0) for name in sorted(NAMES)}

    def add(self, name: str, amount: int = 1, /, **labels: Label) -> None:
        """Add `amount` to the series of `name` with exactly these labels.

        Raises:
            ValueError: `name` is not in `COUNTERS`, the labels or their values are not in the table, or `amount` is
                negative. All are bugs of the caller. Nothing was counted.
        """
        known(name)
        if amount < 0:
            raise ValueError(f"counter {name} cannot go down by {-amount}")
        key, series = _key(labels), self._series[name]
        if key not in series:
            raise _stray(name, key)
        with self._lock:
            series[key] += amount

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


class _Series:
    """One histogram with one set of labels."""

    __slots__ = ("bounds_s", "counts", "key", "name", "total_s")

    def __init__(self, name: str, key: Labels) -> None:
        self.name, self.key, self.bounds_s = name, key, HISTOGRAMS[name].bounds_s
        self.counts, self.total_s = [0] * (len(self.bounds_s) + 1), 0.0


class Histograms:
    """Durations in seconds, in buckets. Threads may share them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._series: dict[tuple[object, ...], _Series] = {
            (name, *key): _Series(name, key) for name, metric in HISTOGRAMS.items() for key in metric.series()
        }

    def observe(self, name: str, durations_s: Iterable[float], /, **labels: str) -> None:
        """Add durations in seconds. Raises: ValueError: the name or a label is not in `HISTOGRAMS`."""
        key = (name, *labels.items())  # every histogram has at most one label, and its values are texts
        if key not in self._series:
            raise _stray(name, tuple(labels.items()))
        series = self._series[key]
        with self._lock:
            for seconds in durations_s:
                series.counts[bisect_left(series.bounds_s, seconds)] += 1
                series.total_s += seconds

    def snapshot(self) -> dict[str, dict[Labels, tuple[tuple[int, ...], float]]]:
        """Return, for each series that has durations, the number in each bucket, and the sum in seconds."""
        found: dict[str, dict[Labels, tuple[tuple[int, ...], float]]] = {}
        with self._lock:
            for series in self._series.values():
                if any(series.counts):
                    found.setdefault(series.name, {})[series.key] = (tuple(series.counts), series.total_s)
        return found


class Gauges:
    """Present values. A gauge has no value until it is set. Threads may share them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._series: dict[str, dict[Labels, float]] = {}

    def set(self, name: str, value: float, /, **labels: Label) -> None:
        """Replace the value. Raises: ValueError: the name or a label is not in `GAUGES`."""
        key = _key(labels)
        if name not in GAUGES or key not in GAUGES[name].series():
            raise _stray(name, key)
        with self._lock:
            self._series.setdefault(name, {})[key] = value

    def snapshot(self) -> dict[str, dict[Labels, float]]:
        """Return a copy of all values that were set."""
        with self._lock:
            return {name: dict(series) for name, series in self._series.items()}


class Metrics:
    """All metrics of one process."""

    def __init__(self) -> None:
        self.counters, self.histograms, self.gauges = Counters(), Histograms(), Gauges()
        self._lock, self._taken = Lock(), 0

    def snapshot(self) -> MetricSnapshot:
        """Return all values that are not 0. A later snapshot has a larger number."""
        with self._lock:
            self._taken += 1
            counted = {
                name: {key: value for key, value in series.items() if value}
                for name, series in self.counters.snapshot().items()
            }
            counters = {name: series for name, series in counted.items() if series}
            return MetricSnapshot(self._taken, counters, self.histograms.snapshot(), self.gauges.snapshot())


def count(name: str, /, **labels: Label) -> None:
    """Add 1 to a counter of the current telemetry. Without telemetry, only the name is checked.

    Raises:
        ValueError: the name or a label is not in the table.
    """
    known(name)
    if (telemetry := current()) is not None:
        telemetry.counters.add(name, **labels)


def observe(name: str, seconds: float, /, **labels: str) -> None:
    """Add a duration to a histogram of the current telemetry. Without telemetry, do nothing.

    Raises:
        ValueError: the name or a label is not in the table.
    """
    if (telemetry := current()) is not None:
        telemetry.metrics.histograms.observe(name, (seconds,), **labels)


def observe_all(name: str, durations_s: Iterable[float], /, **labels: str) -> None:
    """Add durations in seconds to a histogram of the current telemetry; see `observe`."""
    if (telemetry := current()) is not None:
        telemetry.metrics.histograms.observe(name, durations_s, **labels)


@contextmanager
def timed(name: str, /, **labels: str) -> Iterator[None]:
    """Measure the block, and add its duration to a histogram, also if the block raises.

    Raises:
        ValueError: the name or a label is not in the table.
    """
    began_s = perf_counter()
    try:
        yield
    finally:
        observe(name, perf_counter() - began_s, **labels)


def gauge(name: str, value: float, /, **labels: Label) -> None:
    """Set a gauge of the current telemetry. Without telemetry, do nothing.

    Raises:
        ValueError: the name or a label is not in the table.
    """
    if (telemetry := current()) is not None:
        telemetry.metrics.gauges.set(name, value, **labels)


def known(name: str) -> None:
    """Check a counter's name. Raises: ValueError: no counter has this name."""
    if name not in NAMES:
        raise ValueError(f"no counter is named {name!r}: add it to esper/telemetry/metric_table.py or mend the name")


def _stray(name: str, key: Labels) -> ValueError:
    told = ", ".join(f"{label}={value!r}" for label, value in key) or "no labels"
    return ValueError(f"no metric {name!r} with {told}: add it to esper/telemetry/metric_table.py or mend the call")


def _key(labels: dict[str, Label]) -> Labels:
    return tuple([(name, _text(value)) for name, value in sorted(labels.items())]) if labels else ()


def _text(value: Label) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
