"""Turns the metrics of a run into the families of Prometheus. A series without a value is there, too, with 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from esper.telemetry.metric_snapshot import Durations, MetricSnapshot
from esper.telemetry.metric_table import COUNTERS, GAUGES, HISTOGRAMS, HistogramMetric


def prometheus_name(name: str) -> str:
    """Return the name under which a metric is on the endpoint, such as `esper_severe_events_total`."""
    end = "_total" if name in COUNTERS else "_seconds" if name in HISTOGRAMS else ""
    return name.replace(".", "_") + end


def registry_of(source: Callable[[], MetricSnapshot]) -> CollectorRegistry:
    """Return a registry that asks `source` for the present metrics each time it is rendered."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfRun(source))
    return registry


class _OfRun(Collector):
    def __init__(self, source: Callable[[], MetricSnapshot]) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield each declared metric."""
        now = self._source()
        yield from _counters(now)
        yield from _histograms(now)
        yield from _gauges(now)


def _counters(now: MetricSnapshot) -> Iterator[Metric]:
    for name, metric in COUNTERS.items():
        family = CounterMetricFamily(prometheus_name(name), metric.what, labels=sorted(metric.labels))
        series = now.counters.get(name, {})
        for key in metric.series():
            family.add_metric([value for _, value in key], series.get(key, 0))
        yield family


def _histograms(now: MetricSnapshot) -> Iterator[Metric]:
    for name, metric in HISTOGRAMS.items():
        family = HistogramMetricFamily(prometheus_name(name), metric.what, labels=sorted(metric.labels))
        series = now.histograms.get(name, {})
        for key in metric.series():
            found = series.get(key, ((0,) * (len(metric.bounds_s) + 1), 0.0))
            family.add_metric([value for _, value in key], _buckets(metric, found), sum_value=found[1])
        yield family


def _buckets(metric: HistogramMetric, found: Durations) -> list[tuple[str, float]]:
    """Return the number of durations up to each bound, as Prometheus counts them."""
    upto, buckets = 0, []
    for bound, counted in zip((*map(str, metric.bounds_s), "+Inf"), found[0], strict=True):
        upto += counted
        buckets.append((bound, float(upto)))
    return buckets


def _gauges(now: MetricSnapshot) -> Iterator[Metric]:
    for name, metric in GAUGES.items():
        family = GaugeMetricFamily(prometheus_name(name), metric.what, labels=sorted(metric.labels))
        for key, value in now.gauges.get(name, {}).items():
            family.add_metric([text for _, text in key], value)
        yield family
