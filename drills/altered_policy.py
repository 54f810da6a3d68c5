"""A policy that breaks one rule of a decision at one fence. At every other fence it decides as esper's own policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esper.kasmina.settings import GrowthConfig
from esper.leyline.decisions import Decision, Pair
from esper.leyline.reports import FieldReport
from esper.leyline.state import RoundState, SeedState
from esper.tamiyo.heuristic import HeuristicPolicy


@dataclass
class AlteredPolicy:
    """Esper's own policy, with one decision altered."""

    growth: GrowthConfig
    fence: int
    """The fence of the altered decision."""
    alter: Callable[[Decision], Decision]
    given_logits: tuple[float, ...] = ()
    name: str = "drill"
    version: str = "drill-1"

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        """Return the decision of esper's policy, altered at the fence."""
        usual = HeuristicPolicy(self.growth.candidates, self.growth.replicas, self.growth.ramp_steps)
        decided = usual.decide(state, eligible, past)
        return self.alter(decided) if state.fence == self.fence else decided

    def logits(self, state: RoundState, seed: SeedState, past: Sequence[FieldReport]) -> tuple[float, ...]:
        """Return the given logits for each seed."""
        del state, seed, past
        return self.given_logits
