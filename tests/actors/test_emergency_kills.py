"""The emergency actor on Ray is killed while signals are published through it: none is lost, and each has its order."""

from __future__ import annotations

import os
import random
import signal as os_signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import kept_signals
import pytest
from kept_signals import SINKS, Course, noting
from ray import cloudpickle

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
from esper.emergency.settings import EmergencyConfig
from esper.emergency.word import EmergencyWord
from esper.errors import ActorLost
from esper.testing import EPOCH, until

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

    def set(self, seconds: float) -> None:
        atomic_write(self.path, str(seconds).encode())

    def move(self, seconds: float) -> None:
        self.set(self.monotonic() + seconds)

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.monotonic())


def service(folder: Path, word: Path, generation: int) -> EmergencyService:
    """What the actor holds: the real queue on the real disk, with the clock and the sinks of this test."""
    clock, draw = FileClock(folder / "clock"), random.Random(generation)
    sinks = noting(folder, generation)
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


@pytest.fixture
def sent_by_value() -> Iterator[None]:
    """What the actor's process gets of this file and of the kit is sent with it: that process cannot import the kit."""
    sent = (sys.modules[__name__], kept_signals)
    for module in sent:
        cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    yield
    for module in sent:
        cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]


@pytest.mark.torture
@pytest.mark.usefixtures("sent_by_value")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("number", "kills"), [(120, 5), (1000, 50)])
def test_no_signal_is_lost_however_often_the_actor_is_killed(
    embedded: EmbeddedRay, number: int, kills: int, tmp_path: Path
) -> None:
    """In `make check` the run of `test_halt.py` kills the actor three times; `tests/emergency/test_kills.py` kills the
    service without Ray."""
    del embedded
    draw, clock = random.Random(kills), FileClock(tmp_path / "clock")
    clock.set(0.0)
    with EmergencyWord.create(tmp_path / "word") as word:
        actor, publisher = Actor(tmp_path, word.path), Publisher(tmp_path, DEADLINE_S)
        course = Course(tmp_path, number, draw, publisher.publish, actor.link, clock.move)
        killer = Killer(actor, kills, draw)
        try:
            course.run()
            until(lambda: course.all_is_delivered() and killer.left == 0)  # the last kills may follow the last signal
        finally:
            killer.over.set()
            killer.thread.join()
            actor.end()
        assert word.halted()
    assert actor.lives == 1 + kills
    course.check()
