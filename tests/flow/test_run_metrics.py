"""The endpoint for Prometheus of a run in one process: while it runs, and before and after it."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from esper import run
from esper.archive.inspection import inspect_run
from esper.archive.run_directory import metrics_file
from esper.errors import ConfigError, FaultInjected
from esper.faults import Fault, FaultSpec
from esper.flow.progress import Quiet
from esper.flow.runner import _metrics_of
from esper.leyline.stages import LIVE
from esper.telemetry.environment import read_environment
from esper.testing import telling, tiny_config, tiny_task, until


def test_the_variables_of_opentelemetry_ask_for_an_endpoint_unless_the_config_has_a_port(monkeypatch):
    assert read_environment({}).prometheus is None
    assert read_environment({"OTEL_METRICS_EXPORTER": "none"}).prometheus is None
    assert read_environment({"OTEL_METRICS_EXPORTER": "prometheus"}).prometheus == ("127.0.0.1", 9464)
    for name, value in {"METRICS_EXPORTER": "prometheus", "EXPORTER_PROMETHEUS_PORT": "0"}.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    with _metrics_of(tiny_config()) as metrics:
        assert scraped(metrics.url)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ConfigError, check=telling(field="telemetry.prometheus_port", value=port)),
            _metrics_of(tiny_config(telemetry__prometheus_port=port)),
        ):
            pass
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "65536")
    with pytest.raises(ConfigError, check=telling(field="OTEL_EXPORTER_PROMETHEUS_PORT")):
        _metrics_of(tiny_config())


class Scraper(Quiet):
    """Scrapes the run at each fence, from the address that `esper inspect` shows."""

    def __init__(self, path):
        self.path, self.seen, self.said, self.url = path, [], [], None

    def found(self, what):
        self.said.append(what)

    def fence(self, state, tally):
        del tally
        self.url = inspect_run(self.path)["prometheus"]
        expected = {
            ("esper_round_duration_seconds_count",): max(0, state.fence - 1),  # the present round has not ended
            ("esper_step_duration_seconds_count", ("role", "tolaria")): state.training.step,
            ("esper_parameters",): state.training.parameters,
            ("esper_seeds_live",): sum(seed.stage in LIVE for seed in state.seeds),
            ("esper_fallbacks_total", ("source", "command")): 0,
        }
        until(lambda: expected.items() <= scraped(self.url).items())  # an answer may be 0.1 s old
        self.seen.append(scraped(self.url))


def scraped(url):
    with urllib.request.urlopen(url) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


@pytest.mark.slow
def test_a_run_is_scraped_while_it_runs_and_its_endpoint_ends_with_it(tmp_path):
    path = tmp_path / "run"
    config = tiny_config(run__dir=str(path), telemetry__prometheus_port=0)
    run(tiny_task(), config, progress=(watch := Scraper(path)))

    assert watch.said[0] == f"metrics for Prometheus: {watch.url}"
    first, last = watch.seen[0], watch.seen[-1]
    gone_up = {name for name in first.keys() & last.keys() if last[name] > first[name]}
    for name in ("decision", "admission", "graft", "checkpoint"):
        assert (f"esper_{name}_duration_seconds_count",) in gone_up
    assert ("esper_gate_evaluations_total", ("gate", "G2"), ("passed", "true")) in gone_up
    assert not metrics_file(path).exists()
    assert inspect_run(path)["prometheus"] is None
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(watch.url)


def test_a_port_in_use_is_refused_before_anything_is_written_and_a_failed_run_frees_its_port(tmp_path):
    path: Path = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = tiny_config(run__dir=str(path), telemetry__prometheus_port=(port := other.getsockname()[1]))
        with pytest.raises(ConfigError, check=telling(str(port), field="telemetry.prometheus_port")):
            run(tiny_task(), config)
        assert not path.exists()
    fault = FaultSpec(point="conductor.begin", fault=Fault.RAISE)
    with pytest.raises(FaultInjected):
        run(tiny_task(), config.model_copy(update={"faults": (fault,)}))
    assert not metrics_file(path).exists()
    socket.create_server(("127.0.0.1", port)).close()
