"""The service in a thread of one process: the same calls without an event loop, and an end that is told."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from queues import signal
from recording import Recording
from services import opened, word_in

from esper.emergency import hosting
from esper.emergency.hosting import hosted
from esper.errors import EmergencyQueueFull, EmergencyUnavailable
from esper.ground.clock import SystemClock
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import span, use
from esper.telemetry.setup import Telemetry


def none_left(left: Mapping[str, int]) -> None:
    raise AssertionError(left)


def test_signals_are_published_heard_and_delivered_from_plain_code(tmp_path: Path) -> None:
    sink = Recording()
    with hosted(opened(tmp_path, sink), 60.0, none_left) as host:
        assert host.publish(signal("a")) == 1
        assert host.publish(signal("halt", Level.HALT)) == 2
        assert word_in(tmp_path).halted()
        assert [one.signal_id for one in host.pending("conductor")] == ["halt", "a"]
        host.acknowledge("conductor", ["halt", "a"])
        assert host.pending("conductor") == ()
        host.rebind(2)
        host.close()
        with pytest.raises(EmergencyUnavailable):
            host.publish(signal("late"))
    assert sorted(sink.got) == ["a", "halt"]
    with pytest.raises(EmergencyUnavailable):
        host.publish(signal("later"))


class Hanging:
    name = "log"

    async def send(self, one: EmergencySignal) -> None:
        del one
        await asyncio.Event().wait()


def test_an_interrupted_stop_closes_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    host = hosting.HostedEmergency(opened(tmp_path, Hanging()))
    host.start()
    host.publish(signal("a"))
    monkeypatch.setattr(hosting, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        host.stop(1e6)
    monkeypatch.undo()
    sink = Recording()
    with hosted(opened(tmp_path, sink), 60.0, none_left):
        pass
    assert sink.got == ["a"]


def test_every_thread_may_publish_and_nothing_is_lost(tmp_path: Path) -> None:
    sink = Recording()
    with hosted(opened(tmp_path, sink, capacity=128, cap_per_minute=1000), 60.0, none_left) as host:
        threads = [
            threading.Thread(target=lambda part=part: [host.publish(signal(f"{part}-{one}")) for one in range(12)])
            for part in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(sink.got) == len(set(sink.got)) == 96


def test_what_is_left_at_the_end_is_told_and_goes_out_in_the_next_run(tmp_path: Path) -> None:
    told: list[Mapping[str, int]] = []
    with hosted(
        opened(tmp_path, Recording(fails=lambda _: True), first_retry_s=1e6, longest_retry_s=1e6), 60.0, told.append
    ) as host:
        host.publish(signal("a"))
    assert told == [{"log": 1}]
    again = Recording()
    service = opened(tmp_path, again, clock=SystemClock(), first_retry_s=0.001, longest_retry_s=0.001)
    with hosted(service, 60.0, none_left):
        pass
    assert again.got == ["a"]


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with hosted(opened(tmp_path, Recording()), 0.0, none_left):
        assert len(set(threading.enumerate()) - before) == 2
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert set(threading.enumerate()) <= before


def test_a_refusal_is_reported_to_the_telemetry_of_the_publisher(tmp_path: Path) -> None:
    with (
        Telemetry.start(tmp_path / "telemetry", "conductor") as telemetry,
        use(telemetry),
        hosted(opened(tmp_path), 0.0, none_left) as host,
    ):
        for number in range(48):
            host.publish(signal(f"n{number}"))
        with pytest.raises(EmergencyQueueFull):
            host.publish(signal("late"))
    with use(telemetry), pytest.raises(EmergencyUnavailable):
        host.publish(signal("later"))  # the service has ended, and there is no queue that records it
    assert telemetry.counters.total("esper.signal.published") == 48
    assert telemetry.counters.total("esper.signal.rejected") == 2
    events = [json.loads(line) for line in (tmp_path / "telemetry" / "severe-events.jsonl").read_text().splitlines()]
    assert [(one["name"], one["fields"]["signal_id"]) for one in events] == [
        ("emergency_signal_rejected", "late"),
        ("emergency_signal_rejected", "later"),
    ]


def test_a_delivery_reports_although_the_span_in_which_the_service_began_has_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A span that has ended takes no event, and OpenTelemetry warns about the attempt."""
    bad = Recording(fails=lambda _: True)
    with Telemetry.start(tmp_path / "telemetry", "conductor") as telemetry, use(telemetry), ExitStack() as stack:
        with span("esper start"):
            host = stack.enter_context(hosted(opened(tmp_path, bad, attempts=1), 60.0, none_left))
        host.publish(signal("a"))
    assert telemetry.counters.total("esper.signal.dead_lettered") == 1
    assert "ended span" not in caplog.text


def test_a_failure_of_the_block_stays_the_first(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hosted(opened(tmp_path), 0.0, none_left):
        raise ZeroDivisionError


def test_a_forked_process_is_told_that_it_has_no_service(tmp_path: Path) -> None:
    with hosted(opened(tmp_path), 0.0, none_left) as host:
        child = os.fork()
        if child == 0:
            try:
                host.publish(signal("a"))
            except EmergencyUnavailable as gone:
                os._exit(7 if f"forked from process {os.getppid()}" in str(gone) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
