"""The emergency level of a run at each fence, computed from the signals that the run has journaled.

The level depends on the journal only. So after a rollback or a resume, a run has the same level at each fence as
before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.leyline.signals import Level


@dataclass
class LevelHistory:
    """The emergency levels of one run, by fence.

    If a signal was read at fence h, its level is in force at the fences h, h + 1, ..., h + `calm_fences` - 1. A HALT is
    not counted, because it ends the process that reads it, and a resume clears it.
    """

    calm_fences: int
    """Number of fences for which a level is in force after the last signal of this level or above."""
    _highest: dict[int, Level] = field(default_factory=dict)
    """Fence -> highest level below HALT among the signals that were read at it."""

    def add(self, fence: int, level: Level) -> None:
        """Add a signal that was read at a fence."""
        if level < Level.HALT and (fence not in self._highest or self._highest[fence] < level):
            self._highest[fence] = level

    def at(self, fence: int) -> Level | None:
        """Return the highest level that is in force at a fence. None: no level is in force."""
        recent = range(max(0, fence - self.calm_fences + 1), fence + 1)
        return max((self._highest[heard] for heard in recent if heard in self._highest), default=None)

    def was_ever(self, level: Level) -> bool:
        """Return whether this level, or a higher level below HALT, was in force at any fence."""
        return any(found >= level for found in self._highest.values())
