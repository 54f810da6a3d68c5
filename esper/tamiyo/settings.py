"""Settings of decisions: the policy, and the limits of risk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from esper.leyline.base import Seconds, Settings

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class PolicyConfig(Settings):
    """[policy]"""

    kind: Literal["heuristic"] = Field("heuristic", description="the policy that decides")
    deadline_s: Seconds = Field(5.0, description="time limit of one decision, in seconds")


class RiskConfig(Settings):
    """[risk]"""

    max_loss_spike: Positive = Field(
        0.15, description="hold if the round's loss exceeds the best by more than this share"
    )
    max_policy_risk: Fraction = Field(0.98, description="hold if the policy states a risk of at least this")
    max_isolation_violations: Annotated[int, Field(ge=0)] = Field(
        0, description="hold if there were more violations of isolation"
    )
    max_cost_ratio: Positive = Field(
        256.0,
        description="largest modelled FLOPs of a tournament's forks, over the host's; the most expensive pairs are left"
        " out; a host of fewer parameters than growth.parameter_floor counts as one of that size",
    )
    min_coverage: Fraction = Field(0.10, description="hold if at most this share of the features was measured")
