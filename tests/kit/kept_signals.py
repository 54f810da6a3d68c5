"""A course of signals through a service that is killed again and again, and the check that none was lost.

The sinks fail by a seed, and the clock moves only between bursts of signals. It tests nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from esper.emergency.reading import QUEUE, read_queue
from esper.emergency.settings import CONDUCTOR
from esper.errors import EmergencyQueueFull, SinkFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.testing import EPOCH, until

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
        _note(self.folder / f"{self.name}.tried", signal.signal_id)
        if self.draw.random() < 0.3:
            raise SinkFailed(self.name, "the seed says so")
        _note(self.folder / f"{self.name}.got", signal.signal_id)


def noting(folder: Path, life: int) -> list[Noting]:
    """The sinks of one process of the service."""
    return [Noting(name, folder, random.Random(f"{name} {life}")) for name in SINKS]


class Service(Protocol):
    """What the conductor asks."""

    def pending(self, subscriber: str) -> Sequence[EmergencySignal]: ...

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> object: ...


@dataclass
class Course:
    """Signals of random levels. The conductor hears them after each burst.

    Attributes:
        publish: Raises `EmergencyQueueFull` if the signal is refused.
        later: Moves the clock of the service by so many seconds.
    """

    folder: Path
    number: int
    draw: random.Random
    publish: Callable[[EmergencySignal], object]
    service: Service
    later: Callable[[float], object]
    heard: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    accepted: list[EmergencySignal] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sent = {f"s{one}": self.draw.choice(LEVELS) for one in range(self.number)}

    def run(self) -> None:
        for place, (name, level) in enumerate(self.sent.items(), start=1):
            one = EmergencySignal.sealed(
                signal_id=name, run_id="run", generation=1, level=level, origin="test", reason="why", issued_at=EPOCH
            )
            try:
                self.publish(one)
            except EmergencyQueueFull:
                self.refused.append(name)
            else:
                self.accepted.append(one)
            if place % BURST == 0 or place == self.number:
                until(self.all_is_delivered)

    def all_is_delivered(self) -> bool:
        """A minute later, do what the conductor does at a fence; whether no sink has more to try."""
        self.later(61.0)
        self.publish(self.accepted[-1])  # it is known: the couriers look again, because the clock has moved
        while signals := self.service.pending(CONDUCTOR):
            ids = [one.signal_id for one in signals]
            self.heard += ids
            self.service.acknowledge(CONDUCTOR, ids)
        return self.dead_letters() is not None

    def dead_letters(self) -> dict[str, Sequence[str]] | None:
        """Signal -> the sinks that gave it up. None: some signals wait for a sink that has not given up."""
        held = read_queue(self.folder / QUEUE).waiting()
        if any(found.dead is None for one in held for found in one.waiting.values()):
            return None
        return {one.signal.signal_id: tuple(one.waiting) for one in held}

    def check(self) -> None:
        """Each signal was heard and delivered, refused, or is a dead letter; first attempts kept their order."""
        names, given_up = [one.signal_id for one in self.accepted], self.dead_letters()
        assert given_up is not None
        print(f"{self.number} signals: {len(self.refused)} refused, {len(given_up)} dead letters")
        assert 0 < len(self.refused) < self.number / 2
        assert set(self.heard) == set(names) == self.sent.keys() - set(self.refused)
        for sink in SINKS:
            got, tried = _noted(self.folder / f"{sink}.got"), _noted(self.folder / f"{sink}.tried")
            assert set(got) | {name for name, sinks in given_up.items() if sink in sinks} == set(names)
            assert max(Counter(tried).values()) > 1  # some were tried again
            for level in set(LEVELS):
                first = [name for name in dict.fromkeys(tried) if self.sent[name] is level]
                assert first == [name for name in names if self.sent[name] is level]


def _note(path: Path, line: str) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def _noted(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
