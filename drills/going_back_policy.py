"""A policy that commands the run to go back at one fence. At every other fence it decides as esper's own policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.kasmina.settings import GrowthConfig
from esper.leyline.decisions import Decision, Pair
from esper.leyline.reports import FieldReport
from esper.leyline.state import RoundState, SeedState
from esper.tamiyo.heuristic import HeuristicPolicy


@dataclass
class GoingBackPolicy:
    """Esper's own policy, which goes back from one fence several times."""

    growth: GrowthConfig
    fence: int
    """The fence from which the run goes back."""
    steps: tuple[int, ...]
    """Number of fences by which it goes back: the first time, the second time, and so on."""
    name: str = "drill"
    version: str = "drill-1"

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        """Return the decision of esper's policy, or the command to go back."""
        usual = HeuristicPolicy(self.growth.candidates, self.growth.replicas, self.growth.ramp_steps)
        decided = usual.decide(state, eligible, past)
        if state.fence != self.fence or state.rollbacks >= len(self.steps):
            return decided
        to = self.fence - self.steps[state.rollbacks]
        return decided.model_copy(update={"pairs": (), "hold": None, "go_back_to": to})

    def logits(self, state: RoundState, seed: SeedState, past: Sequence[FieldReport]) -> tuple[float, ...]:
        """Return no logits. Esper's policy asks for no blend that needs them."""
        del state, seed, past
        return ()
