"""The process of the service is killed again and again; each signal is delivered, refused or a dead letter."""

from __future__ import annotations

import os
import random
import signal as os_signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from queues import signal
from services import opened

from esper.emergency.emergency_service import QUEUE
from esper.emergency.hosting import HostedEmergency
from esper.emergency.reading import read_queue
from esper.emergency.settings import CONDUCTOR
from esper.errors import EmergencyQueueFull, SinkFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import FakeClock, until

SINKS = ("one", "two")
LEVELS = (Level.NOTICE, Level.NOTICE, Level.NOTICE, Level.ELEVATED, Level.CONSERVATIVE, Level.HALT)
BURST = 60
"""Signals that come before the conductor reads any: more than the 48 places that a queue of 64 has below HALT."""


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


def serve(folder: Path, pipe: Connection, life: int, seconds: float) -> None:
    """Be the process of the service: answer requests until it is killed."""
    clock = FakeClock()
    clock.seconds = seconds
    sinks = [Noting(name, folder, random.Random(f"{name} {life}")) for name in SINKS]
    host = HostedEmergency(opened(folder, *sinks, clock=clock, capacity=64, cap_per_minute=60, attempts=4))
    host.start()
    while True:
        method, arguments = pipe.recv()
        try:
            pipe.send(setattr(clock, *arguments) if method == "clock" else getattr(host, method)(*arguments))
        except EmergencyQueueFull as full:
            pipe.send(full)


class Process:
    """The process of the service, which is replaced when it has been killed. The caller's request is then repeated."""

    def __init__(self, folder: Path, kills: int, draw: random.Random) -> None:
        self.folder, self.draw, self.left = folder, draw, kills
        self.lives, self.seconds = 0, 0.0
        self.begin()

    def begin(self) -> None:
        self.lives += 1
        self.pipe, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.pipe.close()
                serve(self.folder, theirs, self.lives, self.seconds)
            finally:
                os._exit(1)
        theirs.close()

    def kill(self) -> None:
        os.kill(self.pid, os_signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == -os_signal.SIGKILL, "the process ended by itself"

    def ask(self, method: str, *arguments: Any) -> Any:
        """Send a request; kill the process while it works on it, if the seed says so."""
        while True:
            self.pipe.send((method, arguments))
            if self.left == 0 or self.draw.random() > 0.2:
                return self.pipe.recv()
            self.left -= 1
            moment = time.perf_counter() + self.draw.uniform(0.0, 0.004)
            while time.perf_counter() < moment:
                pass
            self.kill()
            self.begin()

    def later(self, seconds: float) -> None:
        self.seconds += seconds
        self.ask("clock", "seconds", self.seconds)


def hear(process: Process, heard: list[str]) -> None:
    """Do what the conductor does at a fence."""
    while signals := process.ask("pending", CONDUCTOR):
        heard += [one.signal_id for one in signals]
        process.ask("acknowledge", CONDUCTOR, [one.signal_id for one in signals])


def dead_letters(folder: Path) -> dict[str, Sequence[str]] | None:
    """Signal -> the sinks that gave it up. None: some signals wait for a sink that has not given up."""
    held = read_queue(folder / QUEUE).waiting()
    if any(found.dead is None for one in held for found in one.waiting.values()):
        return None
    return {one.signal.signal_id: tuple(one.waiting) for one in held}


@pytest.mark.parametrize(("number", "kills"), [(120, 6), pytest.param(1000, 50, marks=pytest.mark.torture)])
def test_no_signal_is_lost_however_often_the_process_is_killed(number: int, kills: int, tmp_path: Path) -> None:
    draw = random.Random(kills)
    process, heard, refused = Process(tmp_path, kills, draw), list[str](), list[str]()
    sent = {f"s{one}": draw.choice(LEVELS) for one in range(number)}
    accepted: list[EmergencySignal] = []

    def all_is_delivered() -> bool:
        process.later(61.0)
        process.ask("publish", accepted[-1])  # it is known: the couriers look again, because the clock has moved
        hear(process, heard)
        return dead_letters(tmp_path) is not None

    try:
        for place, (name, level) in enumerate(sent.items(), start=1):
            told = process.ask("publish", one := signal(name, level))
            if isinstance(told, EmergencyQueueFull):
                refused.append(name)
            else:
                accepted.append(one)
            if place % BURST == 0 or place == number:
                until(all_is_delivered)
    finally:
        process.kill()

    names = [one.signal_id for one in accepted]
    given_up = dead_letters(tmp_path)
    assert given_up is not None
    assert (process.left, process.lives) == (0, 1 + kills)
    assert 0 < len(refused) < number / 2
    assert set(heard) == set(names) == sent.keys() - set(refused)
    for sink in SINKS:
        got, tried = noted(tmp_path / f"{sink}.got"), noted(tmp_path / f"{sink}.tried")
        assert set(got) | {name for name, sinks in given_up.items() if sink in sinks} == set(names)
        assert len(tried) > len(names)  # some were tried again
        for level in set(LEVELS):
            first = [name for name in dict.fromkeys(tried) if sent[name] is level]
            assert first == [name for name in names if sent[name] is level]
