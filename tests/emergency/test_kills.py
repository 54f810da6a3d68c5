"""The process of the service is killed again and again; each signal is delivered, refused or a dead letter."""

from __future__ import annotations

import os
import random
import signal as os_signal
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from kept_signals import Course, noting
from services import opened

from esper.emergency.hosting import HostedEmergency
from esper.errors import EmergencyQueueFull
from esper.leyline.signals import EmergencySignal
from esper.testing import FakeClock


def serve(folder: Path, pipe: Connection, life: int, seconds: float) -> None:
    """Be the process of the service: answer requests until it is killed."""
    clock = FakeClock()
    clock.seconds = seconds
    sinks = noting(folder, life)
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
                answer = self.pipe.recv()
                if isinstance(answer, EmergencyQueueFull):
                    raise answer
                return answer
            self.left -= 1
            moment = time.perf_counter() + self.draw.uniform(0.0, 0.004)
            while time.perf_counter() < moment:
                pass
            self.kill()
            self.begin()

    def publish(self, signal: EmergencySignal) -> int:
        return self.ask("publish", signal)

    def pending(self, subscriber: str) -> Sequence[EmergencySignal]:
        return self.ask("pending", subscriber)

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        self.ask("acknowledge", subscriber, signal_ids)

    def later(self, seconds: float) -> None:
        self.seconds += seconds
        self.ask("clock", "seconds", self.seconds)


@pytest.mark.parametrize(("number", "kills"), [(120, 6), pytest.param(1000, 50, marks=pytest.mark.torture)])
def test_no_signal_is_lost_however_often_the_process_is_killed(number: int, kills: int, tmp_path: Path) -> None:
    draw = random.Random(kills)
    process = Process(tmp_path, kills, draw)
    course = Course(tmp_path, number, draw, process.publish, process, process.later)
    try:
        course.run()
    finally:
        process.kill()
    assert (process.left, process.lives) == (0, 1 + kills)
    course.check()
