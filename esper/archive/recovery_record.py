"""Durations of the phases of a recovery from a death. `esper.flow.going_back` makes recoveries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.errors import EsperError
from esper.leyline.base import Message


class Recovery(Message):
    """One recovery. Durations are in seconds, in the order of the phases.

    If another death interrupts a recovery, the phases that it did not finish are None, and a new recovery begins. An
    actor is *replaced alone* if all other actors continue. It needs no restore. Its work is repeated while training
    continues.
    """

    actors: tuple[str, ...]
    """Names of the actors that had died."""
    error: str
    detail: str
    notes: tuple[str, ...]
    """Last output of the dead processes, and other notes on their errors."""
    fence: int | None
    """Fence to which the run went back. None: before fence 0. If the actors were replaced alone, it is the last fence
    that the run had passed."""
    generation: int
    """Generation in which the run continued."""
    alone: bool
    """True if the actors were replaced while all others continued, in the same generation."""
    from_memory: bool
    """True if the host was restored from memory. False if the host was restored from a checkpoint, or was built
    again."""
    detect_s: float | None
    """Seconds from the death until the run noticed it. Ray records the time of the death. None: Ray has no record."""
    decide_s: float
    """Seconds until all dead actors were known and a restart was allowed."""
    stop_s: float | None
    """Seconds until the new generation was in the journal. This includes the end of a save in progress, and the reading
    of the state to restore."""
    start_s: float | None
    """Seconds until the managers had stopped their work and all new actors were up."""
    restore_s: float | None
    """Seconds until every part of the run was restored to the fence."""
    first_step_s: float | None
    """Seconds until the end of the first training step after the restore. None: no step followed."""

    @property
    def total_s(self) -> float:
        """Seconds from the death to the end of the first step. If the time of the death is unknown, the seconds begin
        when the run noticed it. For actors that were replaced alone, they end when the new actors were up.
        """
        parts = (self.detect_s, self.decide_s, self.stop_s, self.start_s, self.restore_s, self.first_step_s)
        return sum(part for part in parts if part is not None)


@dataclass(frozen=True)
class Lost:
    """The role of each dead actor, by name, and the Unix time of the first death, if it is known."""

    roles: Mapping[str, str]
    died_at: float | None
    notes: tuple[str, ...] = ()
    """Last output of the dead processes, and other notes on their errors."""


@dataclass
class Stopwatch:
    """Stopwatch of one recovery, from the moment at which the run noticed the death."""

    error: EsperError
    heard_at: float = field(default_factory=time.time)
    _last_s: float = field(default_factory=time.monotonic)
    _laps: dict[str, float] = field(default_factory=dict)
    ended_at: float = 0.0
    """Unix time at the end of the last phase, for comparison with times of other processes."""

    def lap(self, phase: str) -> None:
        """Record the end of a phase."""
        now = time.monotonic()
        self._laps[phase], self._last_s, self.ended_at = now - self._last_s, now, time.time()

    def alone(self, lost: Lost, fence: int, generation: int) -> Recovery:
        """Return the record for actors that were replaced alone."""
        return self.recovery(lost, fence, generation, from_memory=True).model_copy(update={"alone": True})

    def recovery(self, lost: Lost, fence: int | None, generation: int, *, from_memory: bool) -> Recovery:
        """Return the record. The time of the first step is added later."""
        return Recovery(
            actors=tuple(sorted(lost.roles)),
            error=type(self.error).__name__,
            detail=str(self.error),
            notes=lost.notes,
            fence=fence,
            generation=generation,
            alone=False,
            from_memory=from_memory,
            detect_s=max(0.0, self.heard_at - lost.died_at) if lost.died_at is not None else None,
            decide_s=self._laps["decide"],
            stop_s=self._laps.get("stop"),
            start_s=self._laps.get("start"),
            restore_s=self._laps.get("restore"),
            first_step_s=None,
        )
