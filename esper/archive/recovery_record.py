"""How long a run needs to go on after a death, phase by phase. It measures; `esper.flow.going_back` recovers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from esper.errors import EsperError
from esper.leyline.base import Message


class Recovery(Message):
    """One recovery; durations in seconds, one phase after the other.

    Of one that another death broke off, the phases that did not end are None; the next one goes on in its place. Who is
    replaced alone stops nobody and has nothing restored: what it did is done again, beside the training that goes on.
    """

    actors: tuple[str, ...]
    """Who had died."""
    error: str
    detail: str
    notes: tuple[str, ...]
    """What they wrote last, and whatever else stands beside their errors."""
    fence: int | None
    """That the run went back to; None: to before fence 0. If they were replaced alone, the last that was passed."""
    generation: int
    """That it went on in."""
    alone: bool
    """They were replaced while all others went on, in the same generation."""
    from_memory: bool
    """The host's state was in memory still; else it came from a checkpoint, or is as it was built."""
    detect_s: float | None
    """From the death, as Ray has written it down, until the run heard of it; None: Ray does not say."""
    decide_s: float
    """Until it was clear who had died and that a restart answers it."""
    stop_s: float | None
    """Until what those did, and what had to be read for their successors, was settled."""
    start_s: float | None
    """Until all successors were up."""
    restore_s: float | None
    """Until every room was at the fence again."""
    first_step_s: float | None
    """Until the first good step after it; None: no step was left to be done."""

    @property
    def total_s(self) -> float:
        """From the death, or from hearing of it, to the first good step; alone, until the successors were up."""
        parts = (self.detect_s, self.decide_s, self.stop_s, self.start_s, self.restore_s, self.first_step_s)
        return sum(part for part in parts if part is not None)


@dataclass(frozen=True)
class Lost:
    """The role of each who has died, by name, and when the first of them did, in Unix time, if that is known."""

    roles: Mapping[str, str]
    died_at: float | None
    notes: tuple[str, ...] = ()
    """What they wrote last, and whatever else stands beside their errors."""


@dataclass
class Stopwatch:
    """Laps of one recovery, from when the run heard of the death."""

    error: EsperError
    heard_at: float = field(default_factory=time.time)
    _last_s: float = field(default_factory=time.monotonic)
    _laps: dict[str, float] = field(default_factory=dict)
    ended_at: float = 0.0
    """Wall time of the last lap, to compare with what another process says."""

    def lap(self, phase: str) -> None:
        """A phase has ended."""
        now = time.monotonic()
        self._laps[phase], self._last_s, self.ended_at = now - self._last_s, now, time.time()

    def alone(self, lost: Lost, fence: int, generation: int) -> Recovery:
        """What was measured of those that were replaced alone."""
        return self.recovery(lost, fence, generation, from_memory=True).model_copy(update={"alone": True})

    def recovery(self, lost: Lost, fence: int | None, generation: int, *, from_memory: bool) -> Recovery:
        """What was measured until now, without the first step, which comes later."""
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
