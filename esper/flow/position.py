"""The state of a run that belongs to no component: fence, tally, emergency level. This state is saved and restored
together with the components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import ValidationError

from esper.emergency.level import LevelHistory
from esper.emergency.settings import EmergencyConfig
from esper.errors import StoreCorrupt
from esper.flow.checkpoints import FenceState
from esper.flow.tally import Tally, TallyState
from esper.ground.problems import first_problem
from esper.leyline.base import GrownMessage
from esper.leyline.finish import Finish
from esper.leyline.signals import Level
from esper.leyline.state import RegistryView, RoundState, TrainingState

COMPONENTS, FORKS = frozenset({"line", "kasmina", "tamiyo"}), frozenset({"twin", "origin", "twin_steps"})
"""Parts that the state of a fence must have in addition to the host. COMPONENTS are the parts of the components, FORKS
the parts of incubation."""


class LineState(GrownMessage):
    """The line's own part of a checkpoint."""

    LATER: ClassVar = frozenset({"finish"})

    tally: TallyState
    level: Level | None
    start: dict[str, float]
    finish: Finish | None = None
    """The network with which the run ends. None: it does not end at this fence, or its network is the live host by the
    config."""

    @classmethod
    def of(cls, saved: FenceState) -> LineState:
        """Return the line's part of the state of a fence.

        Raises:
            StoreCorrupt: the part does not parse, or a part of another component or of incubation is missing.
        """
        lacking = sorted((COMPONENTS - saved.states.keys()) | (FORKS - saved.incubation.keys()))
        if lacking:
            raise StoreCorrupt(f"fence {saved.fence}", f"lacks the state of {', '.join(lacking)}")
        try:
            return cls.model_validate_json(saved.states["line"])
        except ValidationError as error:
            raise StoreCorrupt("the line's state", str(first_problem(error))) from error


@dataclass
class Position:
    """Progress of a run."""

    tally: Tally = field(default_factory=Tally)
    level: Level | None = None
    """The emergency level at the last fence that was held. None: no level was in force."""
    levels: LevelHistory = field(default_factory=lambda: LevelHistory(EmergencyConfig().calm_fences))
    """The emergency levels by fence, from all signals of the run."""
    fence: int | None = None
    """The last fence that was passed. None: no fence was passed yet."""
    start: Mapping[str, float] = field(default_factory=dict)
    """Mean loss and metrics over the test shard before the first step."""
    view: RegistryView | None = None
    """Kasmina's present registry. None: no fence was held yet."""
    checkpoints: tuple[int, ...] = ()
    """The fences to which the run can go back."""
    finish: Finish | None = None
    """As in `LineState`."""

    @property
    def registry(self) -> RegistryView:
        """Kasmina's present registry. Valid after a fence was held."""
        assert self.view is not None, "no fence was held yet"
        return self.view

    def round_state(self, training: TrainingState) -> RoundState:
        """Return the input of Tamiyo. It joins the present registry, the measured round, and the facts of this
        class."""
        return RoundState.of(
            self.registry,
            training,
            self.level,
            checkpoints=self.checkpoints,
            rollbacks=self.tally.rollbacks,
            spent_flops=self.tally.trainer_flops + self.tally.incubator_flops,
        )

    def state(self) -> str:
        """Return the line's part of a checkpoint, as text."""
        own = LineState(tally=self.tally.state(), level=self.level, start=dict(self.start), finish=self.finish)
        return own.model_dump_json()

    def become(self, fence: int | None, own: LineState, view: RegistryView | None) -> None:
        """Take over the state of a fence. The count of rollbacks never decreases, and the levels of later signals are
        kept.
        """
        self.fence, self.start, self.view, self.finish = fence, own.start, view, own.finish
        self.level = self.levels.at(fence) if fence is not None else None
        rollbacks = self.tally.rollbacks
        self.tally.restore(own.tally)
        self.tally.rollbacks = max(rollbacks, own.tally.rollbacks)
