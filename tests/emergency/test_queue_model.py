"""The queue beside a plain dict of what each subscriber waits for, over any order of calls, reopenings and waits."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from queues import QuickDisk, signal

from esper.emergency.queue import HALT_PLACES, EmergencyQueue
from esper.emergency.schedule import Subscriber
from esper.errors import DependencyViolationError, EmergencyQueueFull
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import FakeClock

CAP = 5
SUBSCRIBERS = {
    "conductor": Subscriber("conductor", capped=False, attempts=None),
    "file": Subscriber("file", attempts=3),
    "webhook": Subscriber("webhook", attempts=1),
}
NAMES, SINKS = st.sampled_from([*SUBSCRIBERS]), st.sampled_from(["file", "webhook"])
IDS = st.integers(0, 11).map("s{}".format)


class QueueMachine(RuleBasedStateMachine):
    """`owed` is the model: id -> subscriber -> failed attempts, or None for a dead letter."""

    def __init__(self) -> None:
        super().__init__()
        self.folder, self.clock = Path(tempfile.mkdtemp()), FakeClock()
        self.owed: dict[str, dict[str, int | None]] = {}
        self.taken: dict[str, EmergencySignal] = {}
        self.attempts: dict[str, list[float]] = {name: [] for name in SUBSCRIBERS}
        self.in_flight: dict[str, set[str]] = {name: set() for name in SUBSCRIBERS}
        self.blocked: dict[tuple[str, str], float] = {}

    @initialize(capacity=st.integers(HALT_PLACES, 24))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue = self.open()

    def open(self) -> EmergencyQueue:
        return EmergencyQueue.open(
            self.folder,
            capacity=self.capacity,
            subscribers=[*SUBSCRIBERS.values()],
            clock=self.clock,
            draw=random.Random(0),
            cap_per_minute=CAP,
            compact_bytes=2_000,
            disk=QuickDisk(),
        )

    def teardown(self) -> None:
        self.queue.close()
        shutil.rmtree(self.folder)

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule()
    def reopen(self) -> None:
        self.queue.close()
        self.queue = self.open()
        self.in_flight = {name: set() for name in SUBSCRIBERS}

    @rule(names=st.lists(IDS, min_size=1, max_size=4), level=st.sampled_from(Level))
    def some_are_published(self, names: list[str], level: Level) -> None:
        for name in names:
            self.publish(name, level)

    def publish(self, name: str, level: Level) -> None:
        one = signal(name, level)
        if name in self.taken:
            if self.taken[name] != one:
                with pytest.raises(DependencyViolationError, match="another body under a known id"):
                    self.queue.publish(one)
                return
        elif len(self.owed) >= (self.capacity if level is Level.HALT else self.capacity - HALT_PLACES):
            with pytest.raises(EmergencyQueueFull):
                self.queue.publish(one)
            return
        else:
            self.taken[name] = one
            self.owed[name] = dict.fromkeys(SUBSCRIBERS, 0)
        assert self.queue.publish(one) == len(self.taken)

    @rule(sink=SINKS, most=st.integers(1, 4))
    def some_are_sent(self, sink: str, most: int) -> None:
        self.attempt(sink, most)

    def attempt(self, sink: str, most: int) -> None:
        ids = [delivery.signal.signal_id for delivery in self.queue.due(sink, most)]
        self.queue.attempt(sink, ids)
        self.in_flight[sink] |= set(ids)
        for name in ids:
            self.owed[name][sink] = (self.owed[name][sink] or 0) + 1
        now = self.clock.monotonic()
        self.attempts[sink] += [now for name in ids if self.taken[name].level is not Level.HALT]
        assert sum(at > now - 60.0 for at in self.attempts[sink]) <= CAP

    @rule(sink=SINKS)
    def fail(self, sink: str) -> None:
        self.attempt(sink, 2)
        for name in sorted(self.in_flight[sink] & self.owed.keys()):
            wait_s = self.queue.failed(sink, name, "down")
            assert (wait_s is None) is (self.owed[name][sink] >= SUBSCRIBERS[sink].attempts)
            if wait_s is None:
                self.owed[name][sink] = None
            else:
                self.blocked[sink, name] = self.clock.monotonic() + wait_s
        self.in_flight[sink].clear()

    @rule(subscriber=NAMES, name=IDS)
    def acknowledge(self, subscriber: str, name: str) -> None:
        self.queue.acknowledge(subscriber, [name, name])
        self.in_flight[subscriber].discard(name)
        if name in self.owed and subscriber in self.owed[name]:
            del self.owed[name][subscriber]
            if not self.owed[name]:
                del self.owed[name]

    @rule(start=st.integers(0, 1))
    def retry(self, start: int) -> None:
        ids = [*self.owed][start::2]
        dead = {name for name in ids if None in self.owed[name].values()}
        assert set(self.queue.retry(ids)) == dead
        for name in dead:
            for sink in [sink for sink, count in self.owed[name].items() if count is None]:
                self.owed[name][sink] = self.blocked[sink, name] = 0

    @rule(name=IDS)
    def drop(self, name: str) -> None:
        assert self.queue.drop([name], "in the way") == ((name,) if name in self.owed else ())
        self.owed.pop(name, None)

    @invariant()
    def the_queue_owes_what_the_dict_says(self) -> None:
        held = {one.signal.signal_id: one for one in self.queue.outstanding()}
        assert held.keys() == self.owed.keys()
        for name, owed in self.owed.items():
            found = {sub: None if said.dead is not None else said.attempts for sub, said in held[name].waiting.items()}
            assert found == owed

    @invariant()
    def what_is_due_is_in_order_and_nothing_waits_for_ever(self) -> None:
        now, order = self.clock.monotonic(), [*self.taken]
        for subscriber, spec in SUBSCRIBERS.items():
            free = [
                self.taken[name]
                for name, owed in self.owed.items()
                if owed.get(subscriber) is not None
                and name not in self.in_flight[subscriber]
                and self.blocked.get((subscriber, name), 0.0) <= now
            ]
            free.sort(key=lambda one: (-one.level, order.index(one.signal_id)))
            room = CAP - sum(at > now - 60.0 for at in self.attempts[subscriber]) if spec.capped else len(free)
            halts = [one for one in free if one.level is Level.HALT]
            allowed = halts + [one for one in free if one.level is not Level.HALT][:room]
            assert [delivery.signal for delivery in self.queue.due(subscriber)] == allowed
            next_s = self.queue.next_due_s(subscriber)
            assert (next_s == 0.0) is bool(allowed)


TestQueueMachine: Any = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=25, stateful_step_count=30)
