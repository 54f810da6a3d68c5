"""Settings of decisions: the policy, and the limits of risk."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from esper.leyline.base import Seconds, Settings

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class PolicyConfig(Settings):
    """[policy]"""

    kind: Literal["heuristic"] = Field("heuristic", description="which policy decides")
    deadline_s: Seconds = Field(5.0, description="longest that one decision may take, in seconds")


class RiskConfig(Settings):
    """[risk]"""

    max_loss_spike: Positive = Field(0.15, description="hold if the round's loss is above the best by more, as a share")
    max_policy_risk: Fraction = Field(0.98, description="hold if the policy's own risk is at least this")
    max_isolation_violations: Annotated[int, Field(ge=0)] = Field(0, description="hold above so many violations")
    max_cost_ratio: Positive = Field(64.0, description="hold if a tournament's forks cost more, over the host's steps")
    min_coverage: Fraction = Field(0.10, description="hold if no more of the features than this was measured")
