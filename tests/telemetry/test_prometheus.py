"""A real Prometheus scrapes a real endpoint: each severe event is one more on its counter, and its alert fires."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

import monitoring
from esper.telemetry import Severity, Telemetry, events, severe, span, use
from esper.telemetry.endpoint import MetricsEndpoint
from esper.telemetry.metric_table import COUNTERS, GAUGES, HISTOGRAMS
from esper.testing import until

pytestmark = [pytest.mark.prometheus, pytest.mark.slow]

CONFIG = """
global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}
rule_files: [RULES]
scrape_configs:
- job_name: esper
  static_configs: [{targets: [TARGET]}]
"""


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus of our own that scrapes one endpoint."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, **query: str) -> object:
        """`data` of an answer of its HTTP API."""
        assert self.process.poll() is None, self.log.read_text()
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}") as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> dict[str, float]:
        """The present value of each series, by its labels as JSON without those of the run."""
        found = {}
        for one in self.ask("query", query=query)["result"]:
            labels = {name: value for name, value in one["metric"].items() if name not in ("instance", "job")}
            found[json.dumps(labels, sort_keys=True)] = float(one["value"][1])
        return found


@pytest.fixture
def scraping(tmp_path):
    """Start a Prometheus for the endpoint with this address, and end it at the end of the test."""
    started = []

    def start(url: str) -> Prometheus:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        folder = tmp_path / f"prometheus-{port}"
        folder.mkdir()
        target = url.removeprefix("http://").removesuffix("/metrics")
        (folder / "config.yml").write_text(
            CONFIG.replace("RULES", str(monitoring.RULES)).replace("TARGET", f'"{target}"')
        )
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'config.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=output,
                stderr=output,
            )
        started.append(process)
        prometheus = Prometheus(f"http://127.0.0.1:{port}", process, log)
        until(lambda: process.poll() is not None or "Server is ready" in log.read_text(), every_s=0.05)
        return prometheus

    yield start
    for process in started:
        process.terminate()
        process.wait()


def fired(prometheus: Prometheus) -> set[str]:
    return {one["labels"]["alertname"] for one in prometheus.ask("alerts")["alerts"] if one["state"] == "firing"}


def test_every_severe_event_is_on_the_span_in_the_log_one_more_on_its_counter_and_fires_its_alert(tmp_path, scraping):
    counter = "esper_severe_events_total"
    with (
        Telemetry.start(tmp_path / "telemetry", "conductor") as telemetry,
        use(telemetry),
        MetricsEndpoint("127.0.0.1", 0, telemetry.metrics.snapshot) as endpoint,
    ):
        prometheus = scraping(endpoint.url)
        by_event = {json.dumps({"__name__": counter, "event": event}): event for event in events.NAMES}
        until(lambda: prometheus.values(counter).keys() == by_event.keys(), every_s=0.1)
        before = prometheus.values(counter)
        assert set(before.values()) == {0}
        assert fired(prometheus) == set()

        traces = {}
        for event in sorted(events.NAMES):
            with span("esper round", role="conductor") as here:
                severe(event, Severity.ERROR)
            traces[event] = f"{here.get_span_context().trace_id:032x}"
            assert [one.name for one in here.events] == [event]
        logged = [json.loads(line) for line in (tmp_path / "telemetry" / events.LOG).read_text().splitlines()]
        assert {record["name"]: record["trace_id"] for record in logged} == traces

        until(lambda: 0 not in prometheus.values(counter).values(), every_s=0.1)
        assert set(prometheus.values(counter).values()) == {1}
        mine = {monitoring.alert_of(event).name for event in events.NAMES}
        until(lambda: fired(prometheus) >= mine, every_s=0.1)
        assert fired(prometheus) == mine  # and no other alert
        for alert in prometheus.ask("alerts")["alerts"]:
            assert Path(monitoring.FOLDER.parent / alert["annotations"]["runbook"]).is_file()


def test_every_query_of_the_dashboard_returns_data(scraping):
    with Telemetry.start(None, "conductor") as telemetry:
        metrics = telemetry.metrics
        for name, gauge in GAUGES.items():
            for key in gauge.series():
                metrics.gauges.set(name, 1, **dict(key))
        with MetricsEndpoint("127.0.0.1", 0, metrics.snapshot) as endpoint:
            prometheus = scraping(endpoint.url)
            until(lambda: prometheus.values("esper_fallbacks_total"), every_s=0.1)
            for name, histogram in HISTOGRAMS.items():
                for key in histogram.series():
                    metrics.histograms.observe(name, (0.3,), **dict(key))
            for name, counter in COUNTERS.items():
                for key in counter.series():
                    metrics.counters.add(name, **dict(key))
            until(lambda: fired(prometheus), every_s=0.1)
            board = json.loads(monitoring.DASHBOARD.read_text())
            queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
            assert len(queries) > 40
            for query in queries:
                asked = query.replace("$instance", ".*")

                def has_data(asked: str = asked) -> bool:
                    found = prometheus.values(asked)
                    return bool(found) and all(value == value for value in found.values())  # NaN is no data

                until(has_data, every_s=0.1)


def test_a_real_run_is_scraped_while_it_runs(tmp_path, scraping):
    from esper import run
    from esper.flow.progress import Quiet
    from esper.testing import tiny_config, tiny_task

    class Watched(Quiet):
        prometheus: Prometheus

        def found(self, what: str) -> None:
            self.prometheus = scraping(what.rpartition(" ")[2])

        def fence(self, state, tally) -> None:
            del tally
            if state.fence in (1, 16):
                query = 'esper_step_duration_seconds_count{role="tolaria"}'
                until(lambda: state.training.step in self.prometheus.values(query).values(), every_s=0.1)

    watch = Watched()
    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), telemetry__prometheus_port=0), progress=watch)
    # the counts of the run stay in Prometheus after its end
    passed = watch.prometheus.values('max_over_time(esper_gate_evaluations_total{gate="G2",passed="true"}[10m])')
    assert max(passed.values()) >= 1
    assert max(watch.prometheus.values("max_over_time(esper_fallbacks_total[10m])").values()) == 0
    assert "EsperFallback" not in fired(watch.prometheus)
