"""Signals through a small queue whose sinks fail by seed and whose service ends again and again: none is lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from queues import signal
from recording import Recording
from services import running

from esper.emergency.emergency_service import QUEUE, EmergencyService
from esper.emergency.reading import read_queue
from esper.errors import EmergencyQueueFull
from esper.leyline.signals import Level
from esper.testing import FakeClock

SIGNALS, LIVES = 150, 25
LEVELS = (Level.NOTICE, Level.NOTICE, Level.ELEVATED, Level.CONSERVATIVE, Level.HALT)


class Sender:
    """Publishes numbered signals; a signal that was refused is sent again later, under the same id."""

    def __init__(self, draw: random.Random) -> None:
        self.levels = {f"s{number}": draw.choice(LEVELS) for number in range(SIGNALS)}
        self.left = list(self.levels)
        self.refused = 0
        self.accepted: list[str] = []

    async def send(self, service: EmergencyService) -> None:
        for name in self.left[:12]:
            try:
                await service.publish(signal(name, self.levels[name]))
            except EmergencyQueueFull:
                self.refused += 1
            else:
                self.left.remove(name)
                self.accepted.append(name)


async def hear(service: EmergencyService, heard: list[str]) -> None:
    """Do what the conductor does at a fence."""
    while signals := await service.pending("conductor"):
        heard += [one.signal_id for one in signals]
        await service.acknowledge("conductor", [one.signal_id for one in signals])


def dead_letters(folder: Path) -> dict[str, set[str]]:
    """Signal -> the sinks that gave it up, for signals that wait for nobody else."""
    held = read_queue(folder / QUEUE).waiting()
    return {
        one.signal.signal_id: set(one.waiting)
        for one in held
        if all(found.dead is not None for found in one.waiting.values())
    }


def is_done(folder: Path) -> bool:
    return len(read_queue(folder / QUEUE).waiting()) == len(dead_letters(folder))


@pytest.mark.parametrize("seed", [0, 1])
async def test_each_signal_is_delivered_refused_or_a_dead_letter_however_often_the_service_ends(
    seed: int, tmp_path: Path
) -> None:
    draw, clock, heard = random.Random(seed), FakeClock(), list[str]()
    sender = Sender(draw)
    sinks = [
        Recording("one", fails=lambda _: draw.random() < 0.4),
        Recording("two", fails=lambda _: draw.random() < 0.1),
    ]
    given = {"clock": clock, "capacity": 40, "cap_per_minute": 20, "attempts": 4}
    for life in range(1, LIVES):
        async with running(tmp_path, *sinks, generation=life, **given) as service:
            await sender.send(service)
            await hear(service, heard)
            clock.move(draw.uniform(0.0, 90.0))
            for _ in range(draw.randrange(40)):
                await asyncio.sleep(0)
    async with running(tmp_path, *sinks, generation=LIVES, drain_s=1e4, **given) as service:
        while sender.left or not is_done(tmp_path):
            await sender.send(service)
            await hear(service, heard)
            clock.move(61.0)
            await asyncio.sleep(0.001)

    given_up = dead_letters(tmp_path)
    assert sender.refused > 0
    assert any(len(sink.tried) > len(sink.got) > 0 for sink in sinks)
    assert set(heard) == set(sender.accepted) == set(sender.levels)
    for sink in sinks:
        lost = set(sender.accepted) - set(sink.got) - {name for name, who in given_up.items() if sink.name in who}
        assert lost == set()
        for level in set(LEVELS):
            first = [name for name in dict.fromkeys(sink.tried) if sender.levels[name] is level]
            assert first == [name for name in sender.accepted if name in first]
