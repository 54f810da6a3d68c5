"""Severe events: span, log and counter tell of the same one, and one that cannot be logged does not vanish."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from esper.telemetry import Severity, Telemetry, severe, span, use
from esper.telemetry.events import LOG, NAMES


@pytest.fixture
def telemetry(tmp_path):
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry):
        yield telemetry


def logged(telemetry):
    text = (telemetry.directory / LOG).read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_span_log_and_counter_tell_of_the_same_event(telemetry):
    with span("gate evaluate", role="kasmina") as gate:
        severe("gate_failure", Severity.WARNING, gate="G2", z=0.4)
        (record,) = logged(telemetry)  # written before `severe` returned

    assert isinstance(gate, ReadableSpan)
    (event,) = gate.events
    context = gate.get_span_context()
    assert event.name == "gate_failure"
    assert dict(event.attributes) == {"gate": "G2", "z": 0.4, "esper.severity": "WARNING"}
    assert record["trace_id"] == f"{context.trace_id:032x}"
    assert record["span_id"] == f"{context.span_id:016x}"
    assert (record["name"], record["severity"], record["role"]) == ("gate_failure", "WARNING", "kasmina")
    assert record["fields"] == {"gate": "G2", "z": 0.4}
    assert datetime.fromisoformat(record["time"]).tzinfo == UTC
    assert telemetry.counters.total("esper.severe_events", event="gate_failure") == 1
    assert telemetry.counters.total("esper.severe_events") == 1


def test_an_event_outside_any_span_is_logged_under_the_role_of_the_process(telemetry):
    severe("actor_restarted", Severity.ERROR)

    (record,) = logged(telemetry)
    assert (record["trace_id"], record["span_id"], record["role"]) == ("", "", "conductor")


def test_a_loss_that_is_not_a_number_leaves_the_log_readable(telemetry, tmp_path):
    severe("guard_tripped", Severity.ERROR, loss=float("nan"), history=[1.0, float("-inf")], path=tmp_path)

    (record,) = logged(telemetry)
    assert record["fields"] == {"loss": "NaN", "history": [1.0, "-Infinity"], "path": str(tmp_path)}


def test_processes_of_a_run_share_one_log_in_order(telemetry):
    severe("rollback_fast", Severity.WARNING, fence=3)
    with Telemetry.start(telemetry.directory, "tolaria") as other, use(other):
        severe("rollback_full", Severity.ERROR, fence=2)
    severe("trainer_rank_lost", Severity.ERROR, rank=1)

    assert [(record["name"], record["role"]) for record in logged(telemetry)] == [
        ("rollback_fast", "conductor"),
        ("rollback_full", "tolaria"),
        ("trainer_rank_lost", "conductor"),
    ]


def test_an_event_that_cannot_be_logged_is_printed_and_counted_and_stops_nothing(telemetry, capfd):
    (telemetry.directory / LOG).symlink_to("/dev/full")

    with span("trainer apply") as apply:
        severe("checkpoint_rejected", Severity.ERROR, file="fence-3", reason="torn\x1b[2J")

    assert isinstance(apply, ReadableSpan)
    assert [event.name for event in apply.events] == ["checkpoint_rejected"]
    assert telemetry.counters.total("esper.severe_events", event="checkpoint_rejected") == 1
    assert telemetry.counters.total("esper.severe_events.lost") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable()
    told = json.loads(line[line.index("{") :])
    assert told["fields"] == {"file": "fence-3", "reason": "torn\x1b[2J"}
    assert told["trace_id"] == f"{apply.get_span_context().trace_id:032x}"


def test_an_event_that_nobody_declared_is_refused_and_not_said(telemetry):
    with pytest.raises(ValueError, match="no severe event is named 'gate_failed'"):
        severe("gate_failed", Severity.ERROR)

    assert not (telemetry.directory / LOG).exists()
    assert telemetry.counters.total("esper.severe_events") == 0


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_declared_event_can_be_said(telemetry, name):
    severe(name, Severity.CRITICAL, name_of_field="any")
    assert [record["name"] for record in logged(telemetry)] == [name]
