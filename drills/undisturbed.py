"""The undisturbed run of a drill's task, and the moments of that run at which a drill breaks something.

A moment is taken from the undisturbed run, and never guessed, so that a drill fits every task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drills.severe_log import Refusal
from esper.archive.journal import Entry, RecordKind
from esper.archive.summary import Summary
from esper.errors import DrillImpossible


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed, in one process, with the task, the config and the seed of the drill."""

    summary: Summary
    entries: Sequence[Entry]
    """All records of its journal."""
    refusals: frozenset[Refusal] = frozenset()
    """The refusals by gates that its severe events tell of."""

    @property
    def first_tournament(self) -> int:
        """Fence at which the first forks begin. Raises: DrillImpossible: the run had no tournament."""
        begun = (entry.body for entry in self.entries if entry.kind is RecordKind.INCUBATION_BEGUN)
        return self._first_fence(begun, "the undisturbed run has no tournament")

    @property
    def first_graft(self) -> int:
        """Fence at which the first seed is grafted. Raises: DrillImpossible: no seed was grafted."""
        return self.first_entry("BLENDING")

    def first_entry(self, stage: str) -> int:
        """Return the fence at which a seed enters a stage first. Raises: DrillImpossible: no seed entered it."""
        changes = (entry.body for entry in self.entries if entry.kind is RecordKind.TRANSITION)
        return self._first_fence(
            (one for one in changes if one["after"] == stage), f"no seed of the undisturbed run becomes {stage}"
        )

    @property
    def middle(self) -> int:
        """Fence in the middle of the run. Raises: DrillImpossible: the run has fewer than three rounds."""
        if self.summary.rounds < 3:
            raise DrillImpossible(f"the run has {self.summary.rounds} rounds; it needs 3 or more")
        return self.summary.rounds // 2

    @property
    def middle_step(self) -> int:
        """Number of optimizer steps in the middle of the round that follows the middle fence.

        Raises: DrillImpossible: the run has fewer than three rounds.
        """
        return (self.step_at(self.middle) + self.step_at(self.middle + 1)) // 2

    def step_at(self, fence: int) -> int:
        """Return the number of optimizer steps of the run up to a fence."""
        ended = {entry.body["fence"]: entry.body["step"] for entry in self.entries if _ends_round(entry)}
        return int(ended[fence]) if fence else 0

    @property
    def decided(self) -> frozenset[int]:
        """Fences at which the policy was asked."""
        return frozenset(entry.body["fence"] for entry in self.entries if entry.kind is RecordKind.DECISION)

    @property
    def saved(self) -> frozenset[int]:
        """Fences with a checkpoint."""
        return frozenset(entry.body["fence"] for entry in self.entries if entry.kind is RecordKind.CHECKPOINT_COMMITTED)

    @property
    def commanded(self) -> frozenset[int]:
        """Fences at which Kasmina received a command."""
        return self._fences_of(RecordKind.COMMAND)

    def reported_before(self, fence: int) -> bool:
        """Return whether the run wrote a field report before a fence."""
        return any(one < fence for one in self._fences_of(RecordKind.FIELD_REPORT))

    def _fences_of(self, kind: RecordKind) -> frozenset[int]:
        """Return the fences at which records of a kind were written."""
        fence, found = 0, set[int]()
        for entry in self.entries:
            if _ends_round(entry):
                fence = int(entry.body["fence"])
            elif entry.kind is kind:
                found.add(fence)
        return frozenset(found)

    def _first_fence(self, bodies: Iterable[Mapping[str, Any]], why: str) -> int:
        found = next(iter(bodies), None)
        if found is None:
            raise DrillImpossible(why)
        return int(found["fence"])


def _ends_round(entry: Entry) -> bool:
    return entry.kind is RecordKind.ROUND_ENDED
