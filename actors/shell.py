"""The one actor class: a room's object behind a mailbox. It has no rule of its own.

It opens the caller's trace, refuses what comes from an older generation, calls, and answers with its counters.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from esper import faults
from esper.errors import DependencyViolationError
from esper.faults import FaultSpec
from esper.heartbeat import beats
from esper.telemetry.context import continue_from, span, use
from esper.telemetry.setup import Telemetry


@dataclass(frozen=True)
class Birth:
    """How an actor comes to be; small, picklable, the same after every restart but for the generation."""

    role: str
    """What it is: tolaria, tamiyo, kasmina, emergency."""
    name: str
    """Which one: `manager-1`."""
    run_id: str
    generation: int
    threads: int
    telemetry_folder: Path | None
    build: Any  # Any: a picklable function that makes the room's object
    arguments: tuple[Any, ...] = ()
    faults: tuple[FaultSpec, ...] = ()


@dataclass(frozen=True)
class Envelope:
    """What travels with every message."""

    generation: int
    traceparent: str


@dataclass(frozen=True)
class Reply:
    """An answer, and what the actor has counted since it began."""

    value: Any  # Any: whatever the method returns
    counters: dict[str, int] = field(default_factory=dict)


class Shell:
    """An actor. Build it without Ray to test it."""

    def __init__(self, birth: Birth) -> None:
        torch.set_num_threads(birth.threads)
        self._birth = birth
        self._telemetry = Telemetry.start(birth.telemetry_folder, birth.name, birth.run_id)
        faults.arm([spec for spec in birth.faults if spec.role in (None, birth.name)])
        with use(self._telemetry), span("actor start", role=birth.role, actor=birth.name):
            faults.point(f"{birth.role}.start")
            self._room = birth.build(*birth.arguments)

    def pid(self) -> int:
        """The process id; answering it at all says that the actor is up."""
        return os.getpid()

    def progress(self) -> int:
        """How much work this process has finished."""
        return beats()

    def call(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> Reply:
        """Call one public method of the room's object.

        Raises:
            DependencyViolationError: the message is of another generation.
            Exception: whatever the method raises, unchanged.
        """
        return Reply(self._do(method, envelope, arguments), self._counted())

    def hand_out(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> tuple[Any, Reply]:
        """As `call`, but the value stands bare beside the reply: the caller keeps a reference and passes it on unseen.

        The reply is what the caller looks at, so that it sees an error before it passes anything on.
        """
        return self._do(method, envelope, arguments), Reply(None, self._counted())

    def _counted(self) -> dict[str, int]:
        totals = {name: sum(rows.values()) for name, rows in self._telemetry.counters.snapshot().items()}
        return {name: total for name, total in totals.items() if total}

    def _do(self, method: str, envelope: Envelope, arguments: tuple[Any, ...]) -> Any:  # Any: as the method
        if envelope.generation != self._birth.generation:
            detail = f"{envelope.generation}, here {self._birth.generation}"
            raise DependencyViolationError(f"message {method}", "another generation's", detail)
        if method.startswith("_"):
            raise DependencyViolationError(f"message {method}", "not a public method")
        with use(self._telemetry), continue_from(envelope.traceparent):
            return getattr(self._room, method)(*arguments)
