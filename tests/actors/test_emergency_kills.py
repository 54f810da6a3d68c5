"""The emergency actor on Ray is killed while signals are published through it: none is lost, and each has its order."""

from __future__ import annotations

import os
import random
import signal as os_signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from actors.actor_process import await_ready, spawn
from actors.embedded_ray import EmbeddedRay
from actors.emergency_actor import ADDRESS, own_name
from actors.emergency_link import EmergencyGuard, EmergencyLink
from actors.publisher import Publisher
from actors.remote import Remote
from actors.shell import ActorSpec
from esper.durable.files import atomic_write
from esper.emergency.emergency_service import QUEUE, EmergencyService, subscribers
from esper.emergency.queue import EmergencyQueue
from esper.emergency.reading import read_queue
from esper.emergency.settings import CONDUCTOR, EmergencyConfig
from esper.emergency.word import EmergencyWord
from esper.errors import ActorLost, EmergencyQueueFull, SinkFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH, until

SINKS = ("one", "two")
LEVELS = (Level.NOTICE, Level.NOTICE, Level.NOTICE, Level.ELEVATED, Level.CONSERVATIVE, Level.HALT)
BURST = 60
"""Signals that come before the conductor reads any: more than the 48 places that a queue of 64 has below HALT."""
DEADLINE_S, START_S = 300.0, 300.0
CONFIG = EmergencyConfig(
    capacity=64, cap_per_minute=60, attempts=4, sinks=[{"name": name, "kind": "file"} for name in SINKS]
)


@dataclass
class FileClock:
    """A clock that stands still at the seconds in a file, the same for every process that replaces the actor."""

    path: Path

    def monotonic(self) -> float:
        return float(self.path.read_text())

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.monotonic())


@dataclass
class Noting:
    """A `Sink` that notes each attempt and each success in a file, so that a kill loses no note. It fails by seed."""

    name: str
    folder: Path
    draw: random.Random

    async def send(self, signal: EmergencySignal) -> None:
        note(self.folder / f"{self.name}.tried", signal.signal_id)
        if self.draw.random() < 0.3:
            raise SinkFailed(self.name, "the seed says so")
        note(self.folder / f"{self.name}.got", signal.signal_id)


def note(path: Path, line: str) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def noted(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def service(folder: Path, word: Path, generation: int) -> EmergencyService:
    """What the actor holds: the real queue on the real disk, with the clock and the sinks of this test."""
    clock, draw = FileClock(folder / "clock"), random.Random(generation)
    sinks = [Noting(name, folder, random.Random(f"{name} {generation}")) for name in SINKS]
    queue = EmergencyQueue.open(
        folder / QUEUE, capacity=64, subscribers=subscribers(CONFIG), clock=clock, draw=draw, cap_per_minute=60
    )
    found = EmergencyService(folder, queue, EmergencyWord.attach(word), sinks, "run", generation, clock)
    atomic_write(folder / ADDRESS, own_name().encode())
    return found


class Actor:
    """The actor on Ray, the conductor's link to it, and the guard that restarts it."""

    def __init__(self, folder: Path, word: Path) -> None:
        self.spec = ActorSpec("emergency", "emergency", "kills", 1, 0, 0, 1, None, service, (), asynchronous=True)
        self.folder, self.word, self.lives = folder, word, 0
        self.changing = threading.Lock()
        self.remote = self.started()
        self.link = EmergencyLink(self.remote, 60.0, self.replaced)
        self.guard = EmergencyGuard(self.link)

    def started(self) -> Remote:
        self.lives += 1
        spec = replace(self.spec, arguments=(self.folder, self.word, self.lives))
        actor = spawn(spec, self.lives)
        return Remote(self.spec, actor, await_ready(spec, actor, time.monotonic(), START_S), patience_s=START_S)

    def replaced(self, death: ActorLost) -> None:
        with self.changing:
            if death.process in (0, self.remote.pid):
                self.remote.switch_to(self.started())

    def kill(self) -> None:
        os.kill(self.remote.pid, os_signal.SIGKILL)

    def end(self) -> None:
        self.guard.close()
        self.guard.join()
        self.remote.process.end()


class Killer:
    """Kills the actor's process at random moments, in a thread of its own; each process once."""

    def __init__(self, actor: Actor, kills: int, draw: random.Random) -> None:
        self.actor, self.left, self.draw, self.over = actor, kills, draw, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        killed = 0
        while self.left and not self.over.wait(self.draw.uniform(0.0, 0.3)):
            if (pid := self.actor.remote.pid) != killed:
                self.actor.kill()
                killed, self.left = pid, self.left - 1


def hear(link: EmergencyLink, heard: list[str]) -> None:
    """Do what the conductor does at a fence."""
    while signals := link.pending(CONDUCTOR):
        heard += [one.signal_id for one in signals]
        link.acknowledge(CONDUCTOR, [one.signal_id for one in signals])


def dead_letters(folder: Path) -> dict[str, Sequence[str]] | None:
    """Signal -> the sinks that gave it up. None: some signals wait for a sink that has not given up."""
    held = read_queue(folder / QUEUE).waiting()
    if any(found.dead is None for one in held for found in one.waiting.values()):
        return None
    return {one.signal.signal_id: tuple(one.waiting) for one in held}


def sealed(name: str, level: Level) -> EmergencySignal:
    return EmergencySignal.sealed(
        signal_id=name, run_id="run", generation=1, level=level, origin="test", reason="why", issued_at=EPOCH
    )


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("number", "kills"), [(120, 5), (1000, 50)])
def test_no_signal_is_lost_however_often_the_actor_is_killed(
    embedded: EmbeddedRay, number: int, kills: int, tmp_path: Path
) -> None:
    """In `make check` the run of `test_halt.py` kills the actor three times; `tests/emergency/test_kills.py` kills the
    service without Ray."""
    del embedded
    draw, seconds, heard, refused = random.Random(kills), 0.0, list[str](), list[str]()
    sent = {f"s{one}": draw.choice(LEVELS) for one in range(number)}
    accepted: list[EmergencySignal] = []
    (tmp_path / "clock").write_text("0.0")

    def all_is_delivered() -> bool:
        nonlocal seconds
        seconds += 61.0
        atomic_write(tmp_path / "clock", str(seconds).encode())
        publisher.publish(accepted[-1])  # it is known: the couriers look again, because the clock has moved
        hear(actor.link, heard)
        return dead_letters(tmp_path) is not None

    with EmergencyWord.create(tmp_path / "word") as word:
        actor, publisher = Actor(tmp_path, word.path), Publisher(tmp_path, DEADLINE_S)
        killer = Killer(actor, kills, draw)
        try:
            for place, (name, level) in enumerate(sent.items(), start=1):
                try:
                    publisher.publish(one := sealed(name, level))
                except EmergencyQueueFull:
                    refused.append(name)
                else:
                    accepted.append(one)
                if place % BURST == 0 or place == number:
                    until(all_is_delivered)
            until(lambda: all_is_delivered() and killer.left == 0)  # the last kills may follow the last signal
        finally:
            killer.over.set()
            killer.thread.join()
            actor.end()
        assert word.halted()

    names = [one.signal_id for one in accepted]
    given_up = dead_letters(tmp_path)
    assert given_up is not None
    print(f"{number} signals, {actor.lives - 1} kills: {len(refused)} refused, {len(given_up)} dead letters")
    assert actor.lives == 1 + kills
    assert 0 < len(refused) < number / 2
    assert set(heard) == set(names) == sent.keys() - set(refused)
    for sink in SINKS:
        got, tried = noted(tmp_path / f"{sink}.got"), noted(tmp_path / f"{sink}.tried")
        assert set(got) | {name for name, sinks in given_up.items() if sink in sinks} == set(names)
        assert max(Counter(tried).values()) > 1  # some were tried again
        for level in set(LEVELS):
            first = [name for name in dict.fromkeys(tried) if sent[name] is level]
            assert first == [name for name in names if sent[name] is level]
