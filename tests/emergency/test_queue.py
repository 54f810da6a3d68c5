"""The queue of emergency signals: what is taken goes out once to each subscriber, and what is not is said aloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from esper.emergency.queue import HALT_PLACES, REMEMBERED, EmergencyQueue
from esper.errors import DependencyViolationError, EmergencyQueueFull, EmergencyUnavailable
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import use
from esper.telemetry.setup import Telemetry
from esper.testing import EPOCH, telling


def signal(signal_id: str, level: Level = Level.NOTICE) -> EmergencySignal:
    return EmergencySignal(
        signal_id=signal_id, run_id="run", generation=1, level=level, origin="test", reason="why", issued_at=EPOCH
    )


def full_of_notices(capacity: int = 32) -> EmergencyQueue:
    """Every place is taken but those that only HALT may take."""
    queue = EmergencyQueue(capacity, ("conductor",))
    for number in range(capacity - HALT_PLACES):
        queue.publish(signal(f"n{number}"))
    return queue


def ids(signals: tuple[EmergencySignal, ...]) -> list[str]:
    return [found.signal_id for found in signals]


# -- bounds ------------------------------------------------------------------------------------------------------


def test_the_last_16_places_are_for_halt_alone() -> None:
    queue = full_of_notices()
    for level in (Level.NOTICE, Level.ELEVATED, Level.CONSERVATIVE):
        with pytest.raises(EmergencyQueueFull) as refused:
            queue.publish(signal(f"late-{level}", level))
        assert (refused.value.signal_id, refused.value.capacity) == (f"late-{level}", 32)
    for number in range(16):
        queue.publish(signal(f"h{number}", Level.HALT))
    with pytest.raises(EmergencyQueueFull):
        queue.publish(signal("h16", Level.HALT))
    assert len(queue) == 32


def test_a_refused_signal_drops_nothing_and_may_come_again_when_there_is_a_place() -> None:
    queue = full_of_notices()
    held = queue.pending("conductor")
    with pytest.raises(EmergencyQueueFull):
        queue.publish(signal("late"))
    assert queue.pending("conductor") == held
    queue.acknowledge("conductor", "n0")
    assert queue.publish(signal("late")) == 17
    assert ids(queue.pending("conductor"))[-1] == "late"


def test_a_refusal_is_counted_once_and_told_once_with_the_id(tmp_path: Path) -> None:
    queue = full_of_notices()
    with Telemetry.start(tmp_path, "emergency") as telemetry, use(telemetry), pytest.raises(EmergencyQueueFull):
        queue.publish(signal("late"))
    (line,) = (tmp_path / "severe-events.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert (event["name"], event["severity"]) == ("emergency_signal_rejected", "CRITICAL")
    assert event["fields"] == {"signal_id": "late", "held": 16}
    assert telemetry.counters.total("esper.signal.rejected") == 1
    assert telemetry.counters.total("esper.signal.published") == 0


# -- order -------------------------------------------------------------------------------------------------------


def test_the_highest_level_goes_out_first_then_the_oldest() -> None:
    queue = EmergencyQueue(32, ("conductor",))
    for name, level in [("a", 1), ("b", 3), ("c", 4), ("d", 1), ("e", 4), ("f", 2)]:
        queue.publish(signal(name, Level(level)))
    assert ids(queue.pending("conductor")) == ["c", "e", "b", "f", "a", "d"]
    assert ids(queue.pending("conductor", most=3)) == ["c", "e", "b"]


def test_a_halt_is_in_the_first_batch_however_much_came_before() -> None:
    queue = EmergencyQueue(1024, ("conductor",))
    for number in range(500):
        queue.publish(signal(f"n{number}", Level.CONSERVATIVE))
    queue.publish(signal("halt", Level.HALT))
    assert ids(queue.pending("conductor"))[0] == "halt"


# -- delivery ----------------------------------------------------------------------------------------------------


def test_each_subscriber_acknowledges_for_itself() -> None:
    queue = EmergencyQueue(32, ("conductor", "file"))
    queue.publish(signal("a"))
    queue.acknowledge("conductor", "a")
    assert queue.pending("conductor") == ()
    assert ids(queue.pending("file")) == ["a"]
    assert len(queue) == 1
    queue.acknowledge("file", "a")
    assert len(queue) == 0


def test_a_delivery_counts_once_however_often_it_is_acknowledged() -> None:
    queue = EmergencyQueue(32, ("conductor", "file"))
    with Telemetry.start(None, "emergency") as telemetry, use(telemetry):
        queue.publish(signal("a"))
        for subscriber in ("conductor", "conductor", "stranger", "file", "file"):
            queue.acknowledge(subscriber, "a")
        queue.acknowledge("conductor", "never published")
    assert telemetry.counters.total("esper.signal.delivered") == 2


def test_a_known_id_is_taken_once_also_after_it_was_delivered_and_when_the_queue_is_full() -> None:
    queue = full_of_notices()
    assert queue.publish(signal("n3")) == 16
    assert len(queue) == 16
    queue.acknowledge("conductor", "n3")
    assert queue.publish(signal("n3")) == 16
    assert "n3" not in ids(queue.pending("conductor"))


def test_ids_of_delivered_signals_are_forgotten_in_time_and_those_of_held_ones_never() -> None:
    queue = EmergencyQueue(32, ("conductor",))
    queue.publish(signal("held"))
    for number in range(REMEMBERED + 1):
        queue.publish(signal(f"n{number}"))
        queue.acknowledge("conductor", f"n{number}")
    before = queue.publish(signal("held"))
    assert before == queue.publish(signal("n1")) == queue.publish(signal(f"n{REMEMBERED}"))
    with pytest.raises(
        DependencyViolationError, check=telling(subject="signal n1", missing="another body under a known id")
    ):
        queue.publish(signal("n1", Level.ELEVATED))
    assert queue.publish(signal("n0")) == before + 1  # the oldest: taken again, which is harmless


def test_a_closed_queue_takes_nothing_and_delivers_what_it_holds() -> None:
    queue = EmergencyQueue(32, ("conductor",))
    queue.publish(signal("a"))
    queue.close()
    with Telemetry.start(None, "emergency") as telemetry, use(telemetry), pytest.raises(EmergencyUnavailable):
        queue.publish(signal("b"))
    assert telemetry.counters.total("esper.signal.rejected") == 1
    assert queue.publish(signal("a")) == 1
    assert ids(queue.pending("conductor")) == ["a"]


# -- nothing is lost, whatever happens in whatever order ---------------------------------------------------------

SUBSCRIBERS = ("conductor", "file", "webhook")
NAMES = st.integers(0, 60).map("s{}".format)


class QueueMachine(RuleBasedStateMachine):
    """The queue beside a plain dict of what each subscriber still waits for, in the order in which it came."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, tuple[EmergencySignal, set[str]]] = {}
        self.taken: dict[str, EmergencySignal] = {}

    @initialize(capacity=st.integers(HALT_PLACES, 24))
    def begin(self, capacity: int) -> None:
        self.capacity, self.queue = capacity, EmergencyQueue(capacity, SUBSCRIBERS)

    @rule(name=NAMES, level=st.sampled_from(Level))
    def publish(self, name: str, level: Level) -> None:
        room = self.capacity if level is Level.HALT else self.capacity - HALT_PLACES
        if name not in self.taken and len(self.waiting) >= room:
            with pytest.raises(EmergencyQueueFull):
                self.queue.publish(signal(name, level))
            return
        if name in self.taken and self.taken[name].level is not level:
            with pytest.raises(DependencyViolationError, match="another body under a known id"):
                self.queue.publish(signal(name, level))
            return
        if name not in self.taken:
            self.taken[name] = signal(name, level)
            self.waiting[name] = self.taken[name], set(SUBSCRIBERS)
        assert self.queue.publish(signal(name, level)) == len(self.taken)

    @rule(name=NAMES, subscriber=st.sampled_from(SUBSCRIBERS))
    def acknowledge(self, name: str, subscriber: str) -> None:
        self.queue.acknowledge(subscriber, name)
        if name in self.waiting:
            self.waiting[name][1].discard(subscriber)
            if not self.waiting[name][1]:
                del self.waiting[name]

    @invariant()
    def every_subscriber_is_owed_exactly_what_the_dict_says(self) -> None:
        assert len(self.queue) == len(self.waiting)
        for subscriber in SUBSCRIBERS:
            owed = [found for found, waits in self.waiting.values() if subscriber in waits]
            assert self.queue.pending(subscriber) == tuple(sorted(owed, key=lambda found: -found.level))


TestQueueMachine: Any = QueueMachine.TestCase
