"""The actor class of components with coroutines, without Ray."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from span_files import ended

from actors.async_shell import AsyncShell
from actors.shell import ActorSpec, Envelope
from esper.errors import DependencyViolationError, StageConflict
from esper.telemetry.context import span, traceparent, use
from esper.telemetry.metrics import count
from esper.telemetry.setup import Telemetry
from esper.testing import fail_with, telling


class Component:
    """What the emergency actor might hold."""

    def __init__(self, wrong: Exception | None = None) -> None:
        self.wrong, self.started, self.told = wrong, 0, asyncio.Event()
        self.background = ""

    async def start(self) -> None:
        await asyncio.to_thread(int)  # others may run meanwhile
        self.started += 1
        self.background = traceparent()
        if self.wrong is not None:
            fail_with(self.wrong)

    async def starts(self) -> int:
        return self.started

    async def trace_of_the_start(self) -> str:
        return self.background

    async def wait(self) -> str:
        await self.told.wait()
        count("esper.signal.published")
        return traceparent()

    async def tell(self) -> None:
        self.told.set()

    async def publish(self) -> str:
        return "taken"

    async def fail(self) -> None:
        with span("work"):
            fail_with(StageConflict("stage_conflict", "command-1"), KeyError("the cause"))

    async def exits(self) -> None:
        raise SystemExit(3)

    async def _private(self) -> None:
        raise AssertionError("called")


def shell(**changes: Any) -> AsyncShell:
    fields = {
        "role": "emergency",
        "name": "emergency",
        "run_id": "run",
        "generation": 3,
        "cpus": 0.0,
        "gpus": 0.0,
        "threads": 1,
        "telemetry_folder": None,
        "build": Component,
        "asynchronous": True,
    }
    return AsyncShell(ActorSpec(**{**fields, **changes}))


HERE = Envelope(generation=3, traceparent="")


async def test_messages_are_answered_while_another_one_waits() -> None:
    actor = shell()
    waiting = asyncio.ensure_future(actor.call("wait", HERE, ()))
    assert await actor.pid() == os.getpid()
    assert (await actor.progress()).value >= 0
    assert not waiting.done()
    await actor.call("tell", HERE, ())
    assert (await waiting).metrics.counters == {"esper.signal.published": {(): 1}}


async def test_the_component_is_started_once_before_the_first_message() -> None:
    actor = shell()
    first = await asyncio.gather(*(actor.call("starts", HERE, ()) for _ in range(3)), actor.pid())
    assert [reply.value for reply in first[:3]] == [1, 1, 1]


async def test_a_start_that_fails_fails_every_message() -> None:
    actor = shell(arguments=(StageConflict("stage_conflict", "command-1"),))
    for _ in range(2):
        with pytest.raises(StageConflict):
            await actor.pid()
    with pytest.raises(StageConflict):
        await actor.call("starts", HERE, ())


async def test_a_call_continues_the_trace_of_its_caller_and_the_start_belongs_to_none(tmp_path: Path) -> None:
    actor = shell(telemetry_folder=tmp_path / "actor")
    with Telemetry.start(tmp_path / "caller", "conductor", "run") as telemetry, use(telemetry), span("call"):
        here = traceparent()
        answer = asyncio.ensure_future(actor.call("wait", Envelope(3, here), ()))
        await actor.call("tell", HERE, ())
        assert (await answer).value.split("-")[1] == here.split("-")[1]
        assert (await actor.call("trace_of_the_start", HERE, ())).value == ""


@pytest.mark.parametrize("generation", [2, 4])
async def test_a_message_of_another_generation_is_refused_but_a_signal_is_taken(generation: int) -> None:
    actor = shell()
    with pytest.raises(DependencyViolationError, check=telling(f"{generation}, here 3")):
        await actor.call("starts", Envelope(generation, ""), ())
    assert (await actor.call("publish", Envelope(generation, ""), ())).value == "taken"


async def test_a_newer_generation_replaces_the_present_one_and_no_other_does() -> None:
    actor = shell()
    with pytest.raises(DependencyViolationError):
        await actor.rebind(3)
    await actor.rebind(5)
    assert (await actor.call("starts", Envelope(5, ""), ())).value == 1
    with pytest.raises(DependencyViolationError):
        await actor.call("starts", HERE, ())


async def test_a_private_method_cannot_be_called() -> None:
    with pytest.raises(DependencyViolationError):
        await shell().call("_private", HERE, ())


async def test_an_error_keeps_its_cause_and_is_in_the_trace(tmp_path: Path) -> None:
    actor = shell(telemetry_folder=tmp_path)
    with pytest.raises(StageConflict) as refused:
        await actor.call("fail", HERE, ())
    assert isinstance(refused.value.__cause__, KeyError)
    assert [one["name"] for one in ended(tmp_path) if one["status"].get("code") == 2] == ["work"]


async def test_no_exception_of_the_component_ends_the_process() -> None:
    with pytest.raises(Exception, match="SystemExit"):
        await shell().call("exits", HERE, ())
