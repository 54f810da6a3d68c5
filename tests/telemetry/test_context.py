"""Spans in their context: parents across processes, roles, and failures on record but never changed."""

from __future__ import annotations

import re

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from span_files import ended

from esper.errors import CommandRejected, DependencyViolationError
from esper.telemetry import Telemetry, continue_from, span, trace_id, traceparent, use
from esper.testing import telling


@pytest.fixture
def telemetry(tmp_path):
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry):
        yield telemetry


def spans_of(telemetry):
    """Every span in its file, by name, with its attributes and those of its events as plain dicts."""
    spans = ended(telemetry.directory)
    for owner in [*spans, *(event for one in spans for event in one["events"])]:
        owner["attributes"] = {pair["key"]: pair["value"] for pair in owner["attributes"]}
    return {one["name"]: one for one in spans}


def test_a_stored_message_is_linked_and_not_a_parent(telemetry):
    with span("esper round"):
        sender = traceparent()
    with span("checkpoint save"):
        with span("process esper.emergency", links_to=(sender, traceparent(), "", "00-nonsense")):
            pass
        with span("send esper.emergency", links_to=(sender,), new_trace=True):
            pass

    spans = spans_of(telemetry)
    process, send, here = spans["process esper.emergency"], spans["send esper.emergency"], spans["checkpoint save"]
    assert (process["parentSpanId"], process["traceId"]) == (here["spanId"], here["traceId"])
    assert (send["parentSpanId"], send["traceId"] in (here["traceId"], process["traceId"])) == ("", False)
    assert [link["spanId"] for one in (process, send) for link in one["links"]] == 2 * [sender.split("-")[2]]


def test_an_error_passes_unchanged_and_its_fields_are_on_record(telemetry):
    error = CommandRejected("stale", "c-1", "61 s")
    error.__cause__ = TimeoutError("no answer")

    with pytest.raises(CommandRejected) as caught, span("command admit"):
        raise error

    recorded = spans_of(telemetry)["command admit"]
    (event,) = recorded["events"]
    assert caught.value is error
    assert recorded["attributes"]["error.type"] == {"stringValue": "CommandRejected"}
    assert recorded["status"] == {"code": 2, "message": "CommandRejected: command c-1 rejected: stale (61 s)"}
    with pytest.raises(KeyboardInterrupt), span("esper round"):
        raise KeyboardInterrupt
    assert spans_of(telemetry)["esper round"]["status"]["message"] == "KeyboardInterrupt"
    assert event["name"] == "exception"
    assert event["attributes"]["exception.type"] == {"stringValue": "esper.errors.CommandRejected"}
    assert event["attributes"]["exception.message"] == {"stringValue": str(error)}
    assert event["attributes"]["reason"] == {"stringValue": "stale"}
    assert event["attributes"]["command_id"] == {"stringValue": "c-1"}
    assert "TimeoutError: no answer" in event["attributes"]["exception.stacktrace"]["stringValue"]


def test_an_error_that_cannot_be_put_into_words_still_arrives_as_itself(telemetry):
    class Unspeakable(Exception):
        def __init__(self) -> None:
            self.fields = [self]
            self.fields.append(self.fields)  # without an end

        def __str__(self) -> str:
            raise RuntimeError("no words")

        __repr__ = __str__

    error = Unspeakable()

    with pytest.raises(Unspeakable) as caught, span("gate evaluate"):
        raise error

    (event,) = spans_of(telemetry)["gate evaluate"]["events"]
    assert caught.value is error
    assert event["attributes"]["exception.message"]["stringValue"] == "<Unspeakable: its text raised RuntimeError>"


def test_an_interrupt_marks_the_span_that_it_ended(telemetry):
    with pytest.raises(KeyboardInterrupt), span("esper step"):
        raise KeyboardInterrupt

    assert spans_of(telemetry)["esper step"]["attributes"]["error.type"] == {"stringValue": "KeyboardInterrupt"}


def test_a_generator_closed_early_is_not_a_failure(telemetry):
    def batches():
        with span("esper step"):
            yield 1

    reading = batches()
    next(reading)
    reading.close()

    assert spans_of(telemetry)["esper step"]["status"]["code"] == 0


@pytest.mark.usefixtures("telemetry")
def test_stop_iteration_passes_unchanged():
    error = StopIteration("data ended")
    with pytest.raises(StopIteration) as caught, span("esper step"):
        raise error
    assert caught.value is error


def test_a_span_has_the_nearest_role_above_it(telemetry):
    with span("esper round"), span("tamiyo decide", role="tamiyo"), span("features"):
        pass
    with span("esper step"):
        pass

    roles = {name: one["attributes"]["esper.role"]["stringValue"] for name, one in spans_of(telemetry).items()}
    assert roles == {
        "esper round": "conductor",
        "tamiyo decide": "tamiyo",
        "features": "tamiyo",
        "esper step": "conductor",
    }


def test_attributes_of_foreign_types_are_recorded_as_text(telemetry, tmp_path):
    with span("checkpoint save", path=tmp_path, loss=float("inf"), ranks={3}):
        pass

    attributes = spans_of(telemetry)["checkpoint save"]["attributes"]
    assert attributes["path"] == {"stringValue": str(tmp_path)}
    assert attributes["loss"] == {"stringValue": "Infinity"}
    assert attributes["ranks"] == {"arrayValue": {"values": [{"intValue": "3"}]}}


def test_the_receiver_of_a_traceparent_continues_the_senders_trace(telemetry, tmp_path):
    with span("send esper.emergency"):
        sent, sender_trace = traceparent(), trace_id()
    there = Telemetry.start(tmp_path / "there", "emergency")
    with there, use(there), continue_from(sent), span("process esper.emergency"):
        assert trace_id() == sender_trace

    sender, receiver = spans_of(telemetry)["send esper.emergency"], spans_of(there)["process esper.emergency"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", sent)
    assert (receiver["traceId"], receiver["parentSpanId"]) == (sender["traceId"], sender["spanId"])
    assert receiver["flags"] & 0x300 == 0x300  # the parent is known, and remote
    assert trace_id() == ""


@pytest.mark.usefixtures("telemetry")
@pytest.mark.parametrize(
    "text", ["nonsense", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "0" * 16 + "-01"]
)
def test_a_malformed_traceparent_is_refused_even_inside_a_span(text):
    with (
        span("esper round"),
        pytest.raises(DependencyViolationError, check=telling(subject="trace context", missing="a W3C traceparent")),
        continue_from(text),
    ):
        pytest.fail("the block ran")


@pytest.mark.usefixtures("telemetry")
def test_what_traceparent_gives_without_a_span_can_be_continued_from():
    assert traceparent() == ""
    with continue_from(traceparent()), span("esper round") as root:
        assert isinstance(root, ReadableSpan)
        assert root.parent is None


def test_with_no_telemetry_a_span_records_nothing_and_hides_nothing():
    sent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with continue_from(sent), span("esper step") as nothing:
        assert not nothing.is_recording()
        assert traceparent() == sent
    with pytest.raises(ZeroDivisionError), span("esper step"):
        raise ZeroDivisionError
