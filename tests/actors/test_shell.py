"""The one actor class, without Ray: which messages reach its component, and what it reports of them."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from span_files import ended

from actors.shell import CAUSES_SENT, METRICS, ActorSpec, Envelope, Shell, relinked, sendable
from esper import faults
from esper.errors import (
    ActorError,
    DependencyViolationError,
    FaultInjected,
    PolicyFailed,
    StageConflict,
    StoreCorrupt,
    all_notes,
    causes,
)
from esper.faults import FaultSpec
from esper.ground.heartbeat import beat
from esper.telemetry.context import span, traceparent, use
from esper.telemetry.environment import TelemetryVariables
from esper.telemetry.metrics import count
from esper.telemetry.setup import Telemetry
from esper.testing import fail_with, telling


class Component:
    """What an actor might hold."""

    def __init__(self, *words: str) -> None:
        self.words, self.done = words, 0

    def add(self, one: int, other: int) -> int:
        self.done += 1
        return one + other

    def work(self) -> str:
        with span("room work"):
            count("esper.signal.published")
            count("esper.signal.published")
            count("esper.policy.decisions")
            beat()
            return traceparent()

    def saved(self) -> str:
        return "the record"

    def fail(self) -> None:
        with span("room work"):
            fail_with(StageConflict("stage_conflict", "command-1"), KeyError("the cause"))

    def _private(self) -> None:
        self.done += 1


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm([])


def actor_spec(**changes: Any) -> ActorSpec:
    fields = {
        "role": "kasmina",
        "name": "manager-1",
        "run_id": "run",
        "generation": 3,
        "cpus": 0.0,
        "gpus": 0.0,
        "threads": 1,
        "telemetry_folder": None,
        "build": Component,
    }
    return ActorSpec(**{**fields, **changes})


HERE = Envelope(generation=3, traceparent="")


def spans(folder: Path, role: str) -> list[dict[str, Any]]:
    return ended(folder, f"spans-{role}-*.jsonl")


# -- messages ---------------------------------------------------------------------------------------------------


def test_a_call_reaches_the_room_that_was_built_from_its_spec() -> None:
    shell = Shell(actor_spec(build=lambda *words: Component(*words), arguments=("a", "b")))
    assert shell.call("add", HERE, (2, 3)).value == 5
    value, reply = shell.hand_out("add", HERE, (2, 3))
    assert (value, reply.value) == (5, None)
    assert shell.pid() == os.getpid()


def test_saved_answers_a_message_of_an_older_generation() -> None:
    shell = Shell(actor_spec())
    shell.rebind(4)
    assert shell.call("saved", HERE, ()).value == "the record"


@pytest.mark.parametrize("generation", [2, 4])
@pytest.mark.parametrize("entry", ["call", "hand_out"])
def test_a_message_of_another_generation_is_refused_and_does_nothing(entry: str, generation: int) -> None:
    component = Component()
    shell = Shell(actor_spec(build=lambda: component))
    with pytest.raises(
        DependencyViolationError,
        check=telling(str(generation), "here 3", subject="message add", missing="another generation's"),
    ):
        getattr(shell, entry)("add", Envelope(generation, ""), (2, 3))
    assert component.done == 0


@pytest.mark.parametrize("method", ["_private", "__init__", "__class__", "__reduce__"])
def test_a_private_method_cannot_be_called(method: str) -> None:
    component = Component("kept")
    shell = Shell(actor_spec(build=lambda: component))
    with pytest.raises(DependencyViolationError, check=telling(missing="not a public method")):
        shell.call(method, HERE, ())
    assert (component.words, component.done) == (("kept",), 0)


# -- traces, counters, faults -----------------------------------------------------------------------------------


def test_a_call_continues_the_trace_of_its_caller(tmp_path: Path) -> None:
    shell = Shell(actor_spec(telemetry_folder=tmp_path))
    with Telemetry.start(tmp_path, "conductor") as telemetry, use(telemetry), span("esper round") as asking:
        seen = shell.call("work", Envelope(3, traceparent()), ()).value
        parent = asking.get_span_context()
        assert traceparent().split("-")[2] == f"{parent.span_id:016x}"  # and is the caller's again
    start, work = spans(tmp_path, "manager-1")
    assert (start["name"], work["name"]) == ("actor start", "room work")
    assert (work["traceId"], work["parentSpanId"]) == (f"{parent.trace_id:032x}", f"{parent.span_id:016x}")
    assert seen.split("-")[1:3] == [work["traceId"], work["spanId"]]


def test_a_flush_closes_the_telemetry_and_an_actor_has_the_variables_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "of an older run")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    variables = TelemetryVariables({"OTEL_SERVICE_NAME": "nightly"})
    shell = Shell(actor_spec(telemetry_folder=tmp_path, variables=variables))
    assert (os.environ["OTEL_SERVICE_NAME"], "OTEL_TRACES_SAMPLER" in os.environ) == ("nightly", False)
    assert shell.flush().value is None
    shell.call("work", HERE, ())
    assert [one["name"] for one in spans(tmp_path, "manager-1")] == ["actor start"]
    assert "nightly" not in repr(actor_spec(variables=variables))


def test_a_broken_trace_is_refused_before_the_room_does_anything() -> None:
    component = Component()
    shell = Shell(actor_spec(build=lambda: component))
    with pytest.raises(DependencyViolationError, check=telling(subject="trace context", missing="a W3C traceparent")):
        shell.call("add", Envelope(3, "00-nonsense"), (2, 3))
    assert component.done == 0


def test_an_answer_carries_the_actors_metrics_and_so_does_an_error() -> None:
    shell = Shell(actor_spec())
    assert shell.call("add", HERE, (1, 1)).metrics.counters == {}
    once = {"esper.signal.published": 2, "esper.policy.decisions": 1}
    assert shell.call("work", HERE, ()).metrics.counters == {name: {(): total} for name, total in once.items()}
    twice = {name: {(): 2 * total} for name, total in once.items()}
    last = shell.call("work", HERE, ()).metrics
    assert last.counters == twice
    for later in (shell.hand_out("add", HERE, (1, 1))[1], shell.progress(), shell.rebind(4)):
        assert (later.metrics.counters, later.metrics.number > last.number) == (twice, True)
    with pytest.raises(TypeError) as failed:
        shell.call("add", Envelope(4, ""), (1, "x"))
    assert vars(pickle.loads(pickle.dumps(failed.value)))[METRICS].counters == twice
    assert Shell(actor_spec()).call("add", HERE, (1, 1)).metrics.counters == {}


def test_progress_counts_the_work_of_the_room_only() -> None:
    shell = Shell(actor_spec())
    before = shell.progress().value
    shell.call("add", HERE, (1, 1))
    assert shell.progress().value == before
    shell.call("work", HERE, ())
    assert shell.progress().value == before + 1


# -- failures ----------------------------------------------------------------------------------------------------


def test_an_error_of_the_room_keeps_its_cause_and_is_in_the_trace(tmp_path: Path) -> None:
    shell = Shell(actor_spec(telemetry_folder=tmp_path))
    with pytest.raises(StageConflict) as caught:
        shell.call("fail", HERE, ())
    assert isinstance(caught.value.__cause__, KeyError)
    assert spans(tmp_path, "manager-1")[1]["status"]["message"].startswith("StageConflict")
    assert shell.call("add", HERE, (1, 1)).value == 2


def test_an_error_of_the_rooms_constructor_is_raised_and_in_the_trace(tmp_path: Path) -> None:
    def broken() -> Component:
        fail_with(StageConflict("stage_conflict", "command-1"))

    with pytest.raises(StageConflict):
        Shell(actor_spec(telemetry_folder=tmp_path, build=broken))
    (start,) = spans(tmp_path, "manager-1")
    assert (start["name"], start["status"]["message"][:13]) == ("actor start", "StageConflict")


@pytest.mark.parametrize(
    ("role", "fires"), [(None, True), ("manager-1", True), ("manager-2", False), ("kasmina", False)]
)
def test_a_fault_is_armed_in_the_actor_that_it_names_and_in_no_other(role: str | None, fires: bool) -> None:
    spec = FaultSpec.model_validate({"point": "kasmina.start", "fault": "raise", "role": role})
    if fires:
        with pytest.raises(FaultInjected):
            Shell(actor_spec(faults=(spec,)))
    else:
        Shell(actor_spec(faults=(spec,)))
    assert faults.fired() == fires


def test_an_actor_passes_the_start_point_of_its_role_before_it_builds_its_room() -> None:
    built: list[str] = []
    spec = FaultSpec.model_validate({"point": "tamiyo.start", "fault": "raise"})
    Shell(actor_spec(faults=(spec,)))
    with pytest.raises(FaultInjected):
        Shell(actor_spec(role="tamiyo", faults=(spec,), build=lambda: built.append("room")))
    assert built == []


# -- errors that are sent ---------------------------------------------------------------------------------------


class NeedsTwo(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def chained(*errors: Exception) -> Exception:
    """The first, caused by the second, and so on."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize("error", [KeyError("a"), StageConflict("stage_conflict", "c"), ZeroDivisionError()])
def test_an_error_that_can_be_sent_is_sent_as_it_is(error: Exception) -> None:
    assert sendable(error, "tolaria") is error


def test_a_cause_that_cannot_be_sent_does_not_take_its_error_with_it() -> None:
    error = chained(PolicyFailed("gnn", 3), NeedsTwo("one", "two"))
    sent = sendable(error, "tamiyo")
    assert sent is error
    assert str(pickle.loads(pickle.dumps(sent)).__cause__) == "tamiyo: NeedsTwo: one and two"


def test_an_error_that_was_raised_from_itself_has_an_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    sent = sendable(first, "tolaria")
    assert sent is first
    assert sent.__cause__ is second
    assert second.__cause__ is None
    assert [one.args for one in causes(relinked(pickle.loads(pickle.dumps(sent))))] == [("first",), ("second",)]


def test_a_chain_of_causes_that_is_too_long_to_send_is_cut_with_a_note() -> None:
    error = chained(*[ValueError(number) for number in range(10 * CAUSES_SENT)])
    arrived = list(causes(relinked(pickle.loads(pickle.dumps(sendable(error, "tolaria"))))))
    assert [one.args for one in arrived] == [(number,) for number in range(CAUSES_SENT)]
    assert all_notes(arrived[0]) == ("its own cause, ValueError, and earlier causes are not sent",)


def test_a_group_of_errors_one_of_which_was_caused_by_the_group_is_sent() -> None:
    member = StoreCorrupt("journal", "bad frame")
    group = ExceptionGroup("two failures", [member, KeyError("other")])
    member.__cause__ = group
    assert "two failures" in str(pickle.loads(pickle.dumps(sendable(group, "tolaria"))))


def test_an_error_of_a_constructor_is_made_sendable_too() -> None:
    def build() -> Component:
        raise NeedsTwo("one", "two")

    with pytest.raises(ActorError, check=telling("NeedsTwo", role="kasmina")):
        Shell(actor_spec(build=build))
