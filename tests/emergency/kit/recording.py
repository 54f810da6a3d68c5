"""A sink that notes what it gets, and fails if a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from esper.errors import SinkFailed
from esper.leyline.signals import EmergencySignal


@dataclass
class Recording:
    """A `Sink`. `fails` says for each signal whether it is refused."""

    name: str = "log"
    fails: Callable[[EmergencySignal], bool] = lambda _: False
    got: list[str] = field(default_factory=list)
    """Ids of confirmed signals."""
    tried: list[str] = field(default_factory=list)
    """Ids of all attempts."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, signal: EmergencySignal) -> None:
        self.tried.append(signal.signal_id)
        self.news.set()
        if self.fails(signal):
            raise SinkFailed(self.name, "the test says so")
        self.got.append(signal.signal_id)

    async def after(self, number: int) -> list[str]:
        """Wait until so many attempts were made, and return their ids."""
        while len(self.tried) < number:
            self.news.clear()
            await self.news.wait()
        return self.tried
