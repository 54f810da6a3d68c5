"""Signals, and queues on a disk that syncs nothing, for the tests of the emergency queue. It tests nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.durable.files import Disk
from esper.emergency.queue import HALT_PLACES, EmergencyQueue
from esper.emergency.schedule import Subscriber
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH, FakeClock

CONDUCTOR = Subscriber("conductor", capped=False, attempts=None)
FILE = Subscriber("file", attempts=3)
WEBHOOK = Subscriber("webhook", attempts=3)


class QuickDisk(Disk):
    """The real disk without its syncs: these tests cut no power."""

    def fdatasync(self, descriptor: int) -> None:
        del descriptor

    def fsync(self, descriptor: int) -> None:
        del descriptor

    def sync_folder(self, path: Path) -> None:
        del path


def signal(signal_id: str, level: Level = Level.NOTICE, **fields: Any) -> EmergencySignal:
    told = {"run_id": "run", "generation": 1, "origin": "test", "reason": "why", "issued_at": EPOCH}
    return EmergencySignal.sealed(signal_id=signal_id, level=level, **{**told, **fields})


def opened(folder: Path, *subscribers: Subscriber, capacity: int = 32, **given: Any) -> EmergencyQueue:
    """A queue with a clock that stands still and random numbers from a seed."""
    told = {"clock": FakeClock(), "draw": random.Random(0), "disk": QuickDisk()}
    return EmergencyQueue.open(folder, capacity=capacity, subscribers=subscribers or (CONDUCTOR,), **{**told, **given})


def full_of_notices(folder: Path, *subscribers: Subscriber, capacity: int = 32, **given: Any) -> EmergencyQueue:
    """Every place is taken but those that only HALT may take."""
    queue = opened(folder, *subscribers, capacity=capacity, **given)
    for number in range(capacity - HALT_PLACES):
        queue.publish(signal(f"n{number}"))
    return queue


def due(queue: EmergencyQueue, subscriber: str = "conductor", most: int = 64) -> list[str]:
    return [delivery.signal.signal_id for delivery in queue.due(subscriber, most)]


def held(queue: EmergencyQueue) -> Sequence[str]:
    return [one.signal.signal_id for one in queue.outstanding()]
