"""A thousand signals through a small queue whose owner dies again and again: none is lost.

Each is delivered, refused to its producer, or a dead letter. The sinks fail by a seed, the clock is a fake one, and a
death is a SIGKILL or a power failure on the disk in memory.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from crash_disk import FOLDER, CrashDisk, Killed
from queue_workload import signal
from torture import the_same_secrets

from esper.emergency.queue import EmergencyQueue
from esper.emergency.schedule import CAP_WINDOW_S, Subscriber
from esper.errors import EmergencyQueueFull
from esper.leyline.signals import Level
from esper.testing import FakeClock

CAPACITY, CAP = 64, 60
SINKS = {"conductor": 0.0, "file": 0.15, "webhook": 0.5}
"""Subscriber -> the share of its attempts that fail."""


@dataclass
class Sink:
    """What a receiver saw: signals by their ids, in the order of their first attempts; times of all attempts."""

    failing: float
    got: Counter[str] = field(default_factory=Counter)
    first: dict[str, None] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)


@dataclass
class World:
    """Producer, queue, sinks, an operator and the power supply.

    Attributes:
        refused: Ids that the producer gave up after a typed refusal.
        accepted: Ids in the order in which the queue accepted them.
        lost_attempts: (time, number) of attempts whose records a power failure may have lost.
    """

    signals: int
    kills: int
    seed: int

    def __post_init__(self) -> None:
        self.rng, self.clock, self.disk = random.Random(self.seed), FakeClock(), CrashDisk()
        self.sinks = {name: Sink(failing) for name, failing in SINKS.items()}
        self.waiting = [signal(f"s{n}", Level(self.rng.choice((1, 1, 1, 2, 3, 4)))) for n in range(self.signals)]
        self.level = {one.signal_id: one.level for one in self.waiting}
        self.refused, self.accepted = set[str](), list[str]()
        self.lost_attempts = list[tuple[float, int]]()
        self.deaths = self.power_failures = 0
        self.queue = self.open()

    def open(self) -> EmergencyQueue:
        receivers = [Subscriber(name, capped=name != "conductor", attempts=3, most_s=20.0) for name in SINKS]
        return EmergencyQueue.open(
            FOLDER,
            capacity=CAPACITY,
            subscribers=receivers,
            clock=self.clock,
            draw=self.rng,
            cap_per_minute=CAP,
            compact_bytes=20_000,
            disk=self.disk,
        )

    def run(self) -> None:
        every = max(1, self.signals * 5 // self.kills)
        while self.waiting or any(self.queue.next_due_s(name) is not None for name in SINKS):
            if self.deaths < self.kills and self.rng.random() < 8 / every:
                self.disk.kill_at = self.disk.done + self.rng.randrange(25)
            before = sum(len(sink.times) for sink in self.sinks.values())
            try:
                self.step()
            except Killed:
                self.deaths += 1
                attempts = sum(len(sink.times) for sink in self.sinks.values()) - before
                self.die(attempts)
            self.clock.move(self.rng.random() * 4)

    def step(self) -> None:
        for _ in range(self.rng.randrange(4)):
            if self.waiting:
                self.publish()
        for name, sink in self.sinks.items():
            self.deliver(name, sink)
        dead = [letter.signal.signal_id for letter in self.queue.dead_letters()]
        if len(dead) > 15 and self.rng.random() < 0.3:
            self.queue.retry(dead[::2])

    def publish(self) -> None:
        one = self.waiting[0]
        try:
            self.queue.publish(one)  # after a death this is the same signal again
            self.accepted.append(one.signal_id)
            del self.waiting[0]
        except EmergencyQueueFull:
            if self.rng.random() < 0.2:
                self.refused.add(one.signal_id)
                del self.waiting[0]

    def deliver(self, name: str, sink: Sink) -> None:
        batch = [delivery.signal.signal_id for delivery in self.queue.due(name, self.rng.randrange(1, 9))]
        self.queue.attempt(name, batch)
        taken = []
        for signal_id in batch:
            sink.first.setdefault(signal_id)
            if self.level[signal_id] is not Level.HALT:
                sink.times.append(self.clock.monotonic())
            if self.rng.random() < sink.failing:
                self.queue.failed(name, signal_id, "down")
            else:
                sink.got[signal_id] += 1
                taken.append(signal_id)
        self.queue.acknowledge(name, taken)

    def die(self, attempts: int) -> None:
        self.disk.end_process()
        if self.rng.random() < 0.5:
            self.power_failures += 1
            self.lost_attempts.append((self.clock.monotonic(), attempts))
            (state,) = self.disk.states(self.rng, 1)
            self.disk = CrashDisk(state)
        self.queue = self.open()


def judge(world: World) -> None:
    dead = {(letter.subscriber, letter.signal.signal_id) for letter in world.queue.dead_letters()}
    assert set(world.accepted) | world.refused == set(world.level), "a signal has no end"
    for name, sink in world.sinks.items():
        for signal_id in world.accepted:
            assert sink.got[signal_id] or (name, signal_id) in dead, f"{signal_id} is lost for {name}"
        assert set(sink.first) <= set(world.accepted), "a refused signal was sent"
        again = sum(count - 1 for count in sink.got.values() if count)
        assert again <= 9 * world.kills, f"{again} deliveries came twice"
        for level in Level:
            sent = [one for one in sink.first if world.level[one] is level]
            assert sent == [one for one in world.accepted if world.level[one] is level], "first attempts out of order"
    for name in ("file", "webhook"):
        times = world.sinks[name].times
        for n, start in enumerate(times):
            lost = sum(count for at, count in world.lost_attempts if start <= at < start + CAP_WINDOW_S)
            assert sum(at < start + CAP_WINDOW_S - 1e-6 for at in times[n:]) <= CAP + lost, f"the cap of {name}"


def survives(signals: int, kills: int, seed: int) -> World:
    with the_same_secrets():
        world = World(signals, kills, seed)
        world.run()
        judge(world)
    assert world.deaths == kills
    assert world.power_failures > kills // 5
    return world


def test_each_signal_is_delivered_or_refused_or_a_dead_letter_though_its_owner_dies() -> None:
    world = survives(signals=150, kills=12, seed=1)
    assert len(world.accepted) > 100
    assert world.queue.dead_letters()


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_signals_and_fifty_deaths(seed: int) -> None:
    world = survives(signals=1000, kills=50, seed=seed)
    assert len(world.accepted) > 600
    assert world.refused
    assert world.queue.dead_letters()
