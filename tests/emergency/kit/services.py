"""Emergency services on a folder of a test, with sinks that the test holds. It tests nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from queues import QuickDisk

from esper.emergency.emergency_service import QUEUE, EmergencyService, subscribers
from esper.emergency.queue import EmergencyQueue
from esper.emergency.settings import EmergencyConfig
from esper.emergency.sinks import Sink
from esper.emergency.word import EmergencyWord
from esper.ground.clock import Clock
from esper.testing import FakeClock


def config(*sinks: Sink, **given: Any) -> EmergencyConfig:
    names = [{"name": sink.name, "kind": "file"} for sink in sinks]
    return EmergencyConfig(sinks=names, **{"capacity": 64, **given})


def word_in(folder: Path) -> EmergencyWord:
    path = folder / "word"
    return EmergencyWord.attach(path) if path.exists() else EmergencyWord.create(path)


def queue_in(folder: Path, *sinks: Sink, clock: Clock | None = None, **given: Any) -> EmergencyQueue:
    """The queue that the service opens, on a disk that syncs nothing."""
    settings = config(*sinks, **given)
    return EmergencyQueue.open(
        folder / QUEUE,
        capacity=settings.capacity,
        subscribers=subscribers(settings),
        clock=clock or FakeClock(),
        draw=random.Random(0),
        cap_per_minute=settings.cap_per_minute,
        disk=QuickDisk(),
    )


def opened(
    folder: Path, *sinks: Sink, clock: Clock | None = None, generation: int = 1, **given: Any
) -> EmergencyService:
    """A service whose clock stands still; not started."""
    queue = queue_in(folder, *sinks, clock=clock, **given)
    return EmergencyService(folder, queue, word_in(folder), sinks, "run", generation, clock or FakeClock())


@asynccontextmanager
async def running(folder: Path, *sinks: Sink, drain_s: float = 0.0, **given: Any) -> AsyncIterator[EmergencyService]:
    service = opened(folder, *sinks, **given)
    await service.start()
    try:
        yield service
    finally:
        await service.stop(drain_s)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that the service does in the background; the timeout of the test ends a wait in vain."""
    while not holds():
        await asyncio.sleep(0.005)
