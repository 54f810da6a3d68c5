"""The limit of the modelled compute of a whole run; see `growth.max_cost`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from esper.leyline.decisions import Decision, Hold, HoldReason, Pair
from esper.leyline.state import RoundState

GIGA = 1e9


class Forecast(Protocol):
    """Forecasts the compute of a run."""

    def __call__(self, state: RoundState, pairs: Sequence[Pair], *, replica: bool) -> float:
        """Return the largest FLOPs of the run, if a tournament between the pairs begins now.

        Args:
            replica: True if the tournament repeats an accepted seed.
        """
        ...


@dataclass(frozen=True)
class CostLimit:
    """The largest modelled GFLOP of a run, and the forecast that is compared with it."""

    most_gflops: float
    forecast: Forecast

    def exceeded(self, state: RoundState, decision: Decision) -> Hold | None:
        """Return a hold if the run could exceed the limit after the tournament of a decision."""
        gflops = self.forecast(state, decision.pairs, replica=decision.replica_of is not None) / GIGA
        if gflops <= self.most_gflops:
            return None
        detail = "GFLOP of the run with another tournament (growth.max_cost)"
        return Hold(
            fence=state.fence,
            reason=HoldReason.BUDGET_SPENT,
            detail=detail,
            measured=gflops,
            limit=self.most_gflops,
        )
