"""The queue of emergency signals: what is taken goes out once to each subscriber, and what is not is said aloud."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path

import pytest
from queues import CONDUCTOR, FILE, QuickDisk, due, full_of_notices, opened, signal

from esper.emergency.queue_state import REMEMBERED, FinishedIds
from esper.emergency.room import REASON_BYTES
from esper.emergency.schedule import Subscriber
from esper.errors import DependencyViolationError, EmergencyQueueFull, EmergencyUnavailable, StoreWriteFailed
from esper.leyline.signals import Level
from esper.telemetry.context import use
from esper.telemetry.setup import Telemetry
from esper.testing import FakeClock, telling


class AfterABoot(FakeClock):
    """A clock whose monotonic time began later than that of a `FakeClock` with the same wall time."""

    def monotonic(self) -> float:
        return self.seconds - 1000.0


def test_the_window_of_the_cap_slides_on_when_the_queue_is_opened_again(tmp_path: Path) -> None:
    clock, again = FakeClock(), AfterABoot()
    with opened(tmp_path, FILE, clock=clock, cap_per_minute=2) as queue:
        for name, pause_s in (("a", 30.0), ("b", 10.0)):
            queue.publish(signal(name))
            queue.attempt("file", [name])
            clock.move(pause_s)
    again.seconds = clock.seconds
    with opened(tmp_path, FILE, clock=again, cap_per_minute=2) as queue:
        for wait_s in (20.0, 30.0):  # "a" was sent at 0 s, "b" at 30 s, and now it is 40 s
            assert (due(queue, "file"), queue.next_due_s("file")) == ([], pytest.approx(wait_s))
            again.move(wait_s)
            queue.attempt("file", due(queue, "file", 1))


def test_an_attempt_that_has_left_the_window_of_the_cap_does_not_count_though_the_clock_was_set_back(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    with opened(tmp_path, FILE, clock=clock, cap_per_minute=2) as queue:
        for name, moved_s in (("a", 50.0), ("b", -50.0)):  # "a" is sent at 50 s, then "b" at 0 s
            queue.publish(signal(name))
            clock.move(moved_s)
            queue.attempt("file", [name])
    clock.move(70.0)
    with opened(tmp_path, FILE, clock=clock, cap_per_minute=2) as queue:
        assert due(queue, "file") == ["a"]


# -- bounds ------------------------------------------------------------------------------------------------------


def test_the_last_16_places_are_for_halt_alone(tmp_path: Path) -> None:
    queue = full_of_notices(tmp_path)
    for level in (Level.NOTICE, Level.ELEVATED, Level.CONSERVATIVE):
        with pytest.raises(EmergencyQueueFull) as refused:
            queue.publish(signal(f"late-{level}", level))
        assert (refused.value.signal_id, refused.value.capacity) == (f"late-{level}", 32)
    for number in range(16):
        queue.publish(signal(f"h{number}", Level.HALT))
    with pytest.raises(EmergencyQueueFull):
        queue.publish(signal("h16", Level.HALT))
    assert len(queue) == 32


def test_a_refused_signal_drops_nothing_and_may_come_again_when_there_is_a_place(tmp_path: Path) -> None:
    queue = full_of_notices(tmp_path)
    held = due(queue)
    with pytest.raises(EmergencyQueueFull):
        queue.publish(signal("late"))
    assert due(queue) == held
    queue.acknowledge("conductor", ["n0"])
    assert queue.publish(signal("late")) == 17
    assert due(queue)[-1] == "late"


def test_a_refusal_is_counted_once_and_told_once_with_the_id(tmp_path: Path) -> None:
    queue = full_of_notices(tmp_path / "queue")
    with Telemetry.start(tmp_path, "emergency") as telemetry, use(telemetry), pytest.raises(EmergencyQueueFull):
        queue.publish(signal("late"))
    (line,) = (tmp_path / "severe-events.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert (event["name"], event["severity"]) == ("emergency_signal_rejected", "CRITICAL")
    assert event["fields"] == {"signal_id": "late", "why": "signal late: the queue is full (32 signals)", "held": 16}
    assert telemetry.counters.total("esper.signal.rejected") == 1
    assert telemetry.counters.total("esper.signal.published") == 0


# -- order -------------------------------------------------------------------------------------------------------


def test_the_highest_level_goes_out_first_then_the_oldest(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    for name, level in [("a", 1), ("b", 3), ("c", 4), ("d", 1), ("e", 4), ("f", 2)]:
        queue.publish(signal(name, Level(level)))
    assert due(queue) == ["c", "e", "b", "f", "a", "d"]
    assert due(queue, most=3) == ["c", "e", "b"]


def test_a_halt_is_in_the_first_batch_however_much_came_before(tmp_path: Path) -> None:
    queue = opened(tmp_path, capacity=1024)
    for number in range(500):
        queue.publish(signal(f"n{number}", Level.CONSERVATIVE))
    queue.publish(signal("halt", Level.HALT))
    assert due(queue)[0] == "halt"


# -- delivery ----------------------------------------------------------------------------------------------------


def test_each_subscriber_acknowledges_for_itself(tmp_path: Path) -> None:
    queue = opened(tmp_path, CONDUCTOR, FILE)
    queue.publish(signal("a"))
    queue.acknowledge("conductor", ["a"])
    assert due(queue) == []
    assert due(queue, "file") == ["a"]
    assert len(queue) == 1
    queue.acknowledge("file", ["a"])
    assert len(queue) == 0


def test_a_delivery_counts_once_however_often_it_is_acknowledged(tmp_path: Path) -> None:
    queue = opened(tmp_path, CONDUCTOR, FILE)
    with Telemetry.start(None, "emergency") as telemetry, use(telemetry):
        queue.publish(signal("a"))
        for subscriber in ("conductor", "conductor", "stranger", "file", "file"):
            queue.acknowledge(subscriber, ["a"])
        queue.acknowledge("conductor", ["never published"])
    assert telemetry.counters.total("esper.signal.delivered") == 2


def test_a_known_id_is_taken_once_also_after_it_was_delivered_and_when_the_queue_is_full(tmp_path: Path) -> None:
    queue = full_of_notices(tmp_path)
    assert queue.publish(signal("n3")) == 16
    assert len(queue) == 16
    queue.acknowledge("conductor", ["n3"])
    assert queue.publish(signal("n3")) == 16
    assert "n3" not in due(queue)


def test_ids_of_delivered_signals_are_forgotten_in_time_and_those_of_held_ones_never(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    queue.publish(signal("held"))
    for number in range(REMEMBERED + 1):
        queue.publish(signal(f"n{number}"))
        queue.acknowledge("conductor", [f"n{number}"])
    before = queue.publish(signal("held"))
    assert before == queue.publish(signal("n1")) == queue.publish(signal(f"n{REMEMBERED}"))
    with pytest.raises(
        DependencyViolationError, check=telling(subject="signal n1", missing="another body under a known id")
    ):
        queue.publish(signal("n1", Level.ELEVATED))
    assert queue.publish(signal("n0")) == before + 1  # the oldest: taken again, which is harmless


def test_a_closed_queue_takes_nothing_and_delivers_what_it_holds(tmp_path: Path) -> None:
    queue = opened(tmp_path)
    queue.publish(signal("a"))
    queue.close_to_publishers()
    with Telemetry.start(None, "emergency") as telemetry, use(telemetry), pytest.raises(EmergencyUnavailable):
        queue.publish(signal("b"))
    assert telemetry.counters.total("esper.signal.rejected") == 1
    assert queue.publish(signal("a")) == 1
    assert due(queue) == ["a"]


# -- failures of a subscriber ----------------------------------------------------------------------------------------


def test_each_retry_dead_letter_and_drop_is_counted_and_told_with_the_id(tmp_path: Path) -> None:
    with (
        Telemetry.start(tmp_path, "emergency") as telemetry,
        use(telemetry),
        opened(tmp_path / "queue", CONDUCTOR, FILE) as queue,
    ):
        queue.publish(signal("a"))
        for _ in range(3):
            queue.attempt("file", ["a"])
            queue.failed("file", "a", "down" * 1000)
        assert [(letter.subscriber, letter.attempts) for letter in queue.dead_letters()] == [("file", 3)]
        assert queue.failed("file", "a", "down") is None
        assert queue.next_due_s("file") is None
        assert queue.drop(["a", "a", "unknown"], "seen") == ("a",)
    events = [json.loads(line) for line in (tmp_path / "severe-events.jsonl").read_text().splitlines()]
    names = ["emergency_signal_retried"] * 2 + ["emergency_signal_dead_lettered", "emergency_signal_dropped"]
    assert [event["name"] for event in events] == names
    assert {event["fields"]["signal_id"] for event in events} == {"a"}
    assert [event["fields"]["subscriber"] for event in events] == ["file", "file", "file", ""]
    assert max(len(event["fields"]["why"]) for event in events) == REASON_BYTES - 2  # in quotation marks
    counted = {
        name: telemetry.counters.total(f"esper.signal.{name}") for name in ("retried", "dead_lettered", "dropped")
    }
    assert counted == {"retried": 2, "dead_lettered": 1, "dropped": 1}


def test_a_dead_letter_that_is_not_durable_is_not_told(tmp_path: Path) -> None:
    class Failing(QuickDisk):
        fails = False

        def fdatasync(self, descriptor: int) -> None:
            if self.fails:
                raise OSError(errno.EIO, "planted")
            super().fdatasync(descriptor)

    disk = Failing()
    with (
        Telemetry.start(tmp_path, "emergency") as telemetry,
        use(telemetry),
        opened(tmp_path / "queue", Subscriber("file", attempts=1), disk=disk) as queue,
    ):
        queue.publish(signal("a"))
        queue.attempt("file", ["a"])
        disk.fails = True
        with pytest.raises(StoreWriteFailed):
            queue.failed("file", "a", "down")
        assert queue.dead_letters() == ()
    assert telemetry.counters.total("esper.signal.dead_lettered") == 0
    assert not (tmp_path / "severe-events.jsonl").exists()


def test_the_wait_is_drawn_up_to_a_bound_that_doubles(tmp_path: Path) -> None:
    class Highest(random.Random):
        def uniform(self, low: float, high: float) -> float:
            assert low == 0.0
            return high

    waits = [Subscriber("s", first_s=0.5, most_s=6.0).wait_s(n, Highest()) for n in (1, 2, 3, 4, 5, 10**9)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0]
    drawn = [Subscriber("s").wait_s(3, random.Random(n)) for n in range(200)]
    assert min(drawn) < 0.4
    assert max(drawn) > 3.6
    with opened(tmp_path, CONDUCTOR, Subscriber("file", attempts=None)) as queue:
        queue.publish(signal("a"))
        for _ in range(100):
            assert queue.failed("file", "a", "down") is not None  # it never becomes a dead letter


def test_ids_of_an_older_generation_are_forgotten_first() -> None:
    finished = FinishedIds((2, f"new{n}", "") for n in range(REMEMBERED - 1))
    finished.add(1, "old", "x")
    assert finished.checksum("old") == "x"
    finished.add(2, "last", "")
    assert finished.checksum("old") is None
    assert finished.checksum("new0") == ""
    assert FinishedIds(finished.all()).all() == finished.all()
