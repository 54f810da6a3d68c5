"""The emergency service: a signal is durable and in the word before its publisher goes on, and reaches every sink."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from queues import signal
from recording import Recording
from services import opened, queue_in, running, until, word_in

from esper.emergency.emergency_service import QUEUE, EmergencyService
from esper.emergency.queue import EmergencyQueue
from esper.emergency.reading import read_queue
from esper.emergency.settings import EmergencyConfig
from esper.errors import (
    ConfigError,
    EmergencyQueueFull,
    EmergencyUnavailable,
    RunDirectoryError,
    StoreWriteFailed,
)
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import use
from esper.telemetry.events import LOG
from esper.telemetry.setup import Telemetry
from esper.testing import FakeClock


def waiting(folder: Path) -> dict[str, set[str]]:
    """Signal -> who has not acknowledged it, as the disk says."""
    return {held.signal.signal_id: set(held.waiting) for held in read_queue(folder / QUEUE).waiting()}


def fill(number: int, queue: EmergencyQueue) -> None:
    with queue:
        for one in range(number):
            queue.publish(signal(f"n{one}"))


async def calls_without_end(service: EmergencyService) -> None:
    while True:
        await service.rebind(1)


def ids(signals: tuple[EmergencySignal, ...]) -> list[str]:
    return [one.signal_id for one in signals]


async def test_a_published_signal_is_on_the_disk_and_in_the_word(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        assert await service.publish(signal("a", Level.CONSERVATIVE)) == 1
        assert waiting(tmp_path) == {"a": {"conductor"}}
        found = word_in(tmp_path).read()
        assert (found.level, found.generation, found.count) == (Level.CONSERVATIVE, 1, 1)
        await service.publish(signal("b", Level.NOTICE))
        await service.rebind(7)
        found = word_in(tmp_path).read()
        assert (found.level, found.generation, found.count) == (Level.CONSERVATIVE, 7, 2)


async def test_the_conductor_gets_signals_by_level_until_it_acknowledges_them(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for name, level in [("a", Level.NOTICE), ("b", Level.HALT), ("c", Level.NOTICE)]:
            await service.publish(signal(name, level))
        assert ids(await service.pending("conductor")) == ids(await service.pending("conductor")) == ["b", "a", "c"]
        await service.acknowledge("conductor", ["b", "a"])
        assert ids(await service.pending("conductor")) == ["c"]
        assert waiting(tmp_path) == {"c": {"conductor"}}


async def test_a_refused_signal_does_not_reach_the_word(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        for number in range(48):
            await service.publish(signal(f"n{number}"))
        with pytest.raises(EmergencyQueueFull):
            await service.publish(signal("late", Level.CONSERVATIVE))
        assert word_in(tmp_path).read().level is Level.NOTICE
        await service.close()
        with pytest.raises(EmergencyUnavailable):
            await service.publish(signal("later", Level.HALT))
        assert not word_in(tmp_path).halted()
        assert len(await service.pending("conductor")) == 48


# -- sinks -------------------------------------------------------------------------------------------------------


async def test_every_sink_gets_every_signal_once_and_acknowledges_for_itself(tmp_path: Path) -> None:
    one, two = Recording("one"), Recording("two")
    async with running(tmp_path, one, two) as service:
        for name in ("a", "b", "c"):
            await service.publish(signal(name))
        assert [await one.after(3), await two.after(3)] == [["a", "b", "c"]] * 2
        await until(lambda: all(who == {"conductor"} for who in waiting(tmp_path).values()))
        await service.acknowledge("conductor", ["a", "b", "c"])
        assert waiting(tmp_path) == {}


async def test_a_signal_is_not_acknowledged_before_the_sink_has_confirmed_it(tmp_path: Path) -> None:
    entered, confirm = asyncio.Event(), asyncio.Event()

    class Slow(Recording):
        async def send(self, signal: EmergencySignal) -> None:
            entered.set()
            await confirm.wait()
            await super().send(signal)

    async with running(tmp_path, Slow()) as service:
        await service.publish(signal("a"))
        await entered.wait()
        await service.publish(signal("b"))  # a publisher does not wait for a sink
        assert waiting(tmp_path)["a"] == {"conductor", "log"}
        confirm.set()
        await until(lambda: waiting(tmp_path)["a"] == {"conductor"})


async def test_a_sink_that_fails_is_tried_again_and_does_not_hold_up_another(tmp_path: Path) -> None:
    clock, good = FakeClock(), Recording("good")
    bad = Recording("bad", fails=lambda _: len(bad.tried) < 3)

    def has_got_it() -> bool:
        clock.move(1.0)
        return bool(bad.got)

    async with running(tmp_path, bad, good, clock=clock, first_retry_s=0.01, longest_retry_s=0.01) as service:
        await service.publish(signal("a"))
        await until(has_got_it)
        assert (bad.tried, bad.got, good.tried) == (["a"] * 3, ["a"], ["a"])


async def test_after_the_last_attempt_there_is_a_dead_letter_and_nothing_is_sent(tmp_path: Path) -> None:
    clock, bad = FakeClock(), Recording("bad", fails=lambda _: True)
    async with running(tmp_path, bad, clock=clock, attempts=2, first_retry_s=0.01, longest_retry_s=0.01) as service:
        await service.publish(signal("a"))
        await bad.after(1)

        def is_dead() -> bool:
            clock.move(1.0)
            (held,) = read_queue(tmp_path / QUEUE).waiting()
            return held.waiting["bad"].dead == "the test says so"

        await until(is_dead)
        clock.move(1000.0)
        await service.publish(signal("b"))
        await bad.after(3)
        assert bad.tried == ["a", "a", "b"]


async def test_what_the_cap_holds_back_is_sent_later_and_a_halt_at_once(tmp_path: Path) -> None:
    clock, sink = FakeClock(), Recording()
    async with running(tmp_path, sink, clock=clock, cap_per_minute=2) as service:
        for number in range(5):
            await service.publish(signal(f"n{number}"))
        await service.publish(signal("halt", Level.HALT))
        assert set(await sink.after(3)) == {"n0", "n1", "halt"}
        for number in (5, 6):
            clock.move(61.0)
            await service.publish(signal(f"n{number}"))  # the clock of the loop does not move with that of the test
            await sink.after(3 + 2 * (number - 4))
        assert sink.got[3:] == ["n2", "n3", "n4", "n5"]


async def test_a_signal_in_flight_when_the_service_ends_is_sent_again_by_the_next(tmp_path: Path) -> None:
    class Hangs(Recording):
        async def send(self, signal: EmergencySignal) -> None:
            await super().send(signal)
            await asyncio.Event().wait()

    hangs = Hangs()
    async with running(tmp_path, hangs) as service:
        await service.publish(signal("a"))
        await hangs.after(1)
    sink = Recording()
    async with running(tmp_path, sink, generation=2):
        assert await sink.after(1) == ["a"]


# -- the end -----------------------------------------------------------------------------------------------------


async def test_the_end_waits_for_sinks_and_reports_what_they_have_not_got(tmp_path: Path) -> None:
    good, bad = Recording("good"), Recording("bad", fails=lambda _: True)
    given = {"first_retry_s": 1e8, "longest_retry_s": 1e8}
    fill(20, queue_in(tmp_path, good, bad, **given))
    service = opened(tmp_path, good, bad, **given)
    await service.start()
    assert await service.stop(1e4) == {"bad": 20}
    assert len(good.got) == 20
    with pytest.raises(EmergencyUnavailable):
        await service.publish(signal("late"))


async def test_a_dead_letter_is_not_among_what_the_next_run_will_send(tmp_path: Path) -> None:
    sink = Recording(fails=lambda _: True)
    service = opened(tmp_path, sink, attempts=1)
    await service.start()
    await service.publish(signal("a"))
    assert await service.stop(1e4) == {}
    assert sink.tried == ["a"]


async def test_the_end_does_not_wait_for_what_no_sink_can_get_in_time(tmp_path: Path) -> None:
    sink = Recording()
    fill(3, queue_in(tmp_path, sink))
    service = opened(tmp_path, sink, cap_per_minute=1)
    await service.start()
    assert await service.stop(50.0) == {"log": 2}  # the cap allows the next after 60 s


async def test_a_sink_that_hangs_does_not_hold_up_the_end_for_longer_than_allowed(tmp_path: Path) -> None:
    class Hangs(Recording):
        async def send(self, signal: EmergencySignal) -> None:
            self.tried.append(signal.signal_id)
            await asyncio.Event().wait()

    service = opened(tmp_path, Hangs())
    await service.start()
    await service.publish(signal("a"))
    assert await service.stop(0.05) == {"log": 1}


# -- owners ------------------------------------------------------------------------------------------------------


async def test_the_next_owner_has_the_signals_and_the_level_of_the_word(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.publish(signal("a", Level.ELEVATED))
        await service.publish(signal("b", Level.HALT))
        await service.acknowledge("conductor", ["b"])
    async with running(tmp_path, generation=2) as service:
        assert ids(await service.pending("conductor")) == ["a"]
        assert word_in(tmp_path).read().level is Level.HALT


async def test_a_halt_that_never_reached_the_word_is_in_it_when_the_queue_is_opened_again(tmp_path: Path) -> None:
    with queue_in(tmp_path) as queue:  # as if the owner was killed before it wrote the word
        queue.publish(signal("halt", Level.HALT))
    async with running(tmp_path, generation=2) as service:
        assert word_in(tmp_path).halted()
        await service.acknowledge("conductor", ["halt"])
    (tmp_path / "word").unlink()
    async with running(tmp_path, generation=3):
        assert word_in(tmp_path).read().level is None


async def test_a_halt_that_stopped_the_run_does_not_stop_the_next_one_though_a_sink_still_waits_for_it(
    tmp_path: Path,
) -> None:
    sink = Recording(fails=lambda _: True)
    async with running(tmp_path, sink) as service:
        await service.publish(signal("halt", Level.HALT))
        await service.acknowledge("conductor", ["halt"])
    (tmp_path / "word").unlink()
    async with running(tmp_path, sink, generation=2):
        assert waiting(tmp_path) == {"halt": {"log"}}
        assert word_in(tmp_path).read().level is None


async def test_a_second_owner_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.publish(signal("a"))
        with pytest.raises(RunDirectoryError):
            opened(tmp_path, generation=2)
        assert word_in(tmp_path).read().generation == 1
        await service.publish(signal("b"))


async def test_a_queue_is_waited_for_while_the_process_of_a_killed_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, waits = tmp_path / "emergency", list[float]()
    with ExitStack() as killed:
        queue = killed.enter_context(queue_in(folder))
        queue.publish(signal("a"))

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                killed.close()

        ticking = SimpleNamespace(monotonic=lambda: 0.0, sleep=wait)
        monkeypatch.setattr("esper.emergency.emergency_service.time", ticking)
        service = EmergencyService.open(
            folder, word_in(tmp_path), EmergencyConfig(), run_id="run", generation=2, environment={}
        )
    assert len(waits) == 2
    await service.start()
    assert ids(await service.pending("conductor")) == ["a"]
    await service.stop(0.0)


async def test_a_sink_that_cannot_be_made_leaves_no_owner_and_no_folder(tmp_path: Path) -> None:
    sinks = [{"name": "hook", "kind": "webhook", "url_env": "NOT_SET"}]
    with pytest.raises(ConfigError):
        EmergencyService.open(
            tmp_path / "emergency",
            word_in(tmp_path),
            EmergencyConfig(sinks=sinks),
            run_id="run",
            generation=1,
            environment={},
        )
    assert not (tmp_path / "emergency").exists()


# -- failures ----------------------------------------------------------------------------------------------------


async def test_a_failure_in_the_background_is_raised_by_every_later_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Recording()
    service = opened(tmp_path, sink)
    await service.start()

    def full(*_: object) -> None:
        raise StoreWriteFailed("queue", "append")

    monkeypatch.setattr(EmergencyQueue, "acknowledge", full)
    await service.publish(signal("a"))
    await sink.after(1)
    with pytest.raises(StoreWriteFailed):
        await calls_without_end(service)
    with Telemetry.start(tmp_path / "telemetry", "emergency") as telemetry, use(telemetry):
        for call in (service.publish(signal("b")), service.pending("conductor"), service.rebind(2), service.close()):
            with pytest.raises(StoreWriteFailed):
                await call
    assert telemetry.counters.total("esper.signal.rejected") == 1
    assert '"signal_id": "b"' in (tmp_path / "telemetry" / LOG).read_text()
    with pytest.raises(StoreWriteFailed):
        await service.stop(60.0)
    EmergencyQueue.open(tmp_path / QUEUE, capacity=32, subscribers=()).close()  # the lease was given back
