"""Starting and closing telemetry: what is written where, whose name it carries, and that it moves no bit of a run."""

from __future__ import annotations

import json
import os
import random

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from esper.errors import StoreWriteFailed
from esper.telemetry import Severity, Telemetry, severe, span, use
from esper.telemetry.events import LOG


def resource_of(directory):
    (file,) = directory.glob("spans-*.jsonl")
    data = json.loads(file.read_text().splitlines()[0])
    return {
        pair["key"]: next(iter(pair["value"].values())) for pair in data["resourceSpans"][0]["resource"]["attributes"]
    }


def test_spans_go_to_a_file_named_by_role_and_process(tmp_path):
    telemetry = Telemetry.start(tmp_path / "new" / "telemetry", "conductor", "r1")
    with telemetry, use(telemetry), span("esper round"):
        pass

    (file,) = (tmp_path / "new" / "telemetry").iterdir()
    resource = resource_of(tmp_path / "new" / "telemetry")
    assert file.name == f"spans-conductor-{os.getpid()}.jsonl"
    assert (resource["service.name"], resource["esper.role"], resource["esper.run_id"]) == ("esper", "conductor", "r1")


def test_the_environment_names_the_service_but_not_the_role(tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=vision,esper.role=impostor")

    with Telemetry.start(tmp_path, "tamiyo") as telemetry, use(telemetry), span("tamiyo decide"):
        pass

    resource = resource_of(tmp_path)
    assert (resource["service.name"], resource["team"], resource["esper.role"]) == ("nightly", "vision", "tamiyo")


@pytest.mark.parametrize("value", ["true", "TRUE"])
@pytest.mark.parametrize("name", ["OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"])
def test_without_spans_severe_events_are_still_logged_and_counted(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value if name == "OTEL_SDK_DISABLED" else "none")

    with Telemetry.start(tmp_path / "telemetry", "conductor") as telemetry, use(telemetry), span("esper round"):
        severe("guard_tripped", Severity.ERROR)

    (log,) = (tmp_path / "telemetry").iterdir()
    assert json.loads(log.read_text())["name"] == "guard_tripped"
    assert (log.name, telemetry.enabled) == (LOG, False)
    assert telemetry.counters.total("esper.severe_events", event="guard_tripped") == 1


def test_without_a_directory_nothing_is_written_and_severe_events_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with Telemetry.start(None, "conductor") as telemetry, use(telemetry), span("esper round"):
        severe("guard_tripped", Severity.ERROR)

    assert list(tmp_path.iterdir()) == []
    assert telemetry.counters.total("esper.severe_events") == 1


def test_two_runs_in_one_process_keep_their_spans_events_and_counts_apart(tmp_path):
    a, b = Telemetry.start(tmp_path / "a", "conductor"), Telemetry.start(tmp_path / "b", "conductor")
    with a, b, use(a):
        with use(b), span("esper step"):
            severe("rollback_fast", Severity.WARNING)
        with span("esper round"):
            pass

    (of_a,), (of_b,) = (tmp_path / "a").glob("spans-*"), (tmp_path / "b").glob("spans-*")
    assert '"name":"esper round"' in of_a.read_text()
    assert '"name":"esper step"' not in of_a.read_text()
    assert '"name":"esper step"' in of_b.read_text()
    assert '"name":"esper round"' not in of_b.read_text()
    assert (a.counters.total("esper.severe_events"), b.counters.total("esper.severe_events")) == (0, 1)
    assert not (tmp_path / "a" / LOG).exists()
    assert (tmp_path / "b" / LOG).exists()


def test_the_global_tracer_provider_is_left_alone(tmp_path):
    with Telemetry.start(tmp_path, "conductor"):
        assert not isinstance(trace.get_tracer_provider(), TracerProvider)


def test_tracing_draws_nothing_from_the_random_stream_of_the_run(tmp_path):
    random.seed(7)
    untraced = random.random()
    random.seed(7)
    with Telemetry.start(tmp_path, "tolaria") as telemetry, use(telemetry), span("esper step"):
        traced = random.random()

    assert traced == untraced


def test_a_directory_that_cannot_be_made_stops_the_start(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreWriteFailed) as caught:
        Telemetry.start(tmp_path / "file" / "telemetry", "conductor")

    assert isinstance(caught.value.__cause__, NotADirectoryError)
    assert f"spans-conductor-{os.getpid()}.jsonl" in caught.value.path


def test_a_span_that_ends_after_the_close_is_counted_as_lost(tmp_path):
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry), span("esper round"):
        telemetry.close()

    assert telemetry.counters.total("esper.spans.lost") == 1


def test_closing_twice_is_one_close(tmp_path):
    telemetry = Telemetry.start(tmp_path, "conductor")
    telemetry.close()
    telemetry.close()

    assert len(list(tmp_path.iterdir())) == 1
