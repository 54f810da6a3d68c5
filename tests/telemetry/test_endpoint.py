"""The endpoint for Prometheus: what it says, and what a bad client of it costs."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing

import pytest
from prometheus_client.parser import text_string_to_metric_families

from esper.errors import ConfigError
from esper.telemetry.endpoint import MOST_CONNECTIONS, MetricsEndpoint
from esper.telemetry.exposition import prometheus_name
from esper.telemetry.metric_table import COUNTERS, GAUGES, HISTOGRAMS
from esper.telemetry.metrics import Metrics
from esper.testing import telling, until


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def endpoint(metrics):
    with MetricsEndpoint("127.0.0.1", 0, metrics.snapshot) as endpoint:
        yield endpoint


def scraped(endpoint, accept="text/plain"):
    """Every sample: (name, labels) -> value."""
    asked = urllib.request.Request(endpoint.url, headers={"Accept": accept})
    with urllib.request.urlopen(asked) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def test_every_series_is_there_from_0_and_then_has_its_value(endpoint, metrics):
    first = scraped(endpoint)
    for name, metric in COUNTERS.items():
        for key in metric.series():
            assert first.pop((prometheus_name(name), *key)) == 0
    for name, metric in HISTOGRAMS.items():
        for key in metric.series():
            for end in ("sum", "count"):
                assert first.pop((f"{prometheus_name(name)}_{end}", *key)) == 0
            for bound in (*map(str, metric.bounds_s), "+Inf"):
                assert first.pop((f"{prometheus_name(name)}_bucket", *sorted([*key, ("le", bound)]))) == 0
    assert not first  # gauges have no value yet

    metrics.counters.add("esper.severe_events", event="gate_failure")
    metrics.histograms.observe("esper.round.duration", (0.7,))
    for name, metric in GAUGES.items():
        metrics.gauges.set(name, 3, **dict(metric.series()[0]))
    until(lambda: scraped(endpoint)["esper_severe_events_total", ("event", "gate_failure")] == 1)
    now = scraped(endpoint)
    assert [now["esper_round_duration_seconds_bucket", ("le", bound)] for bound in ("0.5", "1.0", "+Inf")] == [0, 1, 1]
    assert now["esper_round_duration_seconds_sum",] == 0.7
    assert {now[prometheus_name(name), *metric.series()[0]] for name, metric in GAUGES.items()} == {3}
    assert (
        b"# EOF"
        in urllib.request.urlopen(
            urllib.request.Request(endpoint.url, headers={"Accept": "application/openmetrics-text;version=1.0.0"})
        ).read()
    )


def test_a_port_in_use_and_an_address_of_another_machine_are_refused_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, check=telling(str(port), field="telemetry.prometheus_port", value=port)):
            MetricsEndpoint("127.0.0.1", port, Metrics().snapshot)
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(ConfigError, check=telling(host, field="telemetry.prometheus_host", value=host)):
            MetricsEndpoint(host, 0, Metrics().snapshot)


@pytest.mark.slow
def test_hostile_clients_cost_a_bounded_part_of_a_core_and_do_not_keep_prometheus_out(endpoint, capfd):
    """100 connections that stay open, each with other garbage, and one that never reads its answer."""
    address = ("127.0.0.1", int(endpoint.url.rpartition(":")[2].partition("/")[0]))
    garbage = (b"", b"GET", b"\x16\x03\x01" * 50, b"GET /metrics HTTP/9.9\r\n\r\n", b"POST /metrics HTTP/1.0\r\n\r\n")
    with ExitStack() as held:
        clients = [held.enter_context(closing(socket.create_connection(address))) for _ in range(100)]
        before_s = time.process_time()
        for number, client in enumerate(clients):
            try:
                client.sendall(garbage[number % len(garbage)] or b"GET /metrics HTTP/1.1\r\nX: ")
            except OSError:  # this client was ended already
                continue
        assert scraped(endpoint)
        used_s = time.process_time() - before_s
        assert len(endpoint._server._clients) <= MOST_CONNECTIONS
    assert used_s < 2.0  # of this process, clients included; on a quiet machine about 0.1 s
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(endpoint.url.replace("/metrics", "/etc/passwd"))
    assert capfd.readouterr().err == ""


def test_the_endpoint_ends_with_its_connections(metrics):
    endpoint = MetricsEndpoint("127.0.0.1", 0, metrics.snapshot)
    address = ("127.0.0.1", int(endpoint.url.rpartition(":")[2].partition("/")[0]))
    with socket.create_connection(address) as holding:
        until(lambda: endpoint._server._clients)
        endpoint.close()
        endpoint.close()
        assert holding.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    socket.create_server(address).close()  # the port is free again


def test_a_bug_of_the_metrics_is_told_once_and_ends_no_run(capfd):
    def broken():
        raise ZeroDivisionError

    with MetricsEndpoint("127.0.0.1", 0, broken) as endpoint:
        for _ in range(2):
            with pytest.raises((OSError, ValueError)):
                urllib.request.urlopen(endpoint.url)
    assert capfd.readouterr().err.count("esper: metrics cannot be served") == 1
