"""Messages about judgements and changes: gate reports, transitions, plans for the host, receipts, field reports."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, Strict

from esper.leyline.base import GrownMessage, Message, PublicMessage
from esper.leyline.commands import BlendSpec, ShortText
from esper.leyline.stages import Stage

Measured = bool | int | float | str | tuple[str, ...] | tuple[int, ...] | None


Figure = Annotated[float, Strict(False)]
"""A float that may be nan or infinite. In JSON these values are text, which strict validation would refuse."""


class Gate(StrEnum):
    """The gates of a seed's lifecycle."""

    G0 = "G0"
    G1 = "G1"
    G2 = "G2"
    G3 = "G3"
    G4 = "G4"
    G5 = "G5"


class PlaceboBasis(GrownMessage):
    """The figures from which the limit of the placebos was computed: `max(largest, 0) + factor * rms`."""

    LATER: ClassVar = frozenset({"mean", "largest"})

    count: int
    """Number of placebos of the tournament."""
    rms: Figure
    """Root of the mean square of the differences of their gains from the mean, divided by m - 1, times
    `sqrt(1 + 1 / m)`, for m placebos. Infinite: the training of a placebo diverged."""
    factor: float
    tests: int
    """Number of candidates among which the chance of a false pass was divided."""
    mean: Figure | None = None
    """Mean of their gains. None: an older version wrote this, with the rms of the gains themselves."""
    largest: Figure | None = None
    """Largest of their gains. None: an older version wrote this, and the limit had the mean in place of it."""

    @property
    def limit(self) -> float:
        """The gain that a seed must exceed."""
        centre = self.mean if self.largest is None else self.largest
        return max(centre or 0.0, 0.0) + (self.factor * self.rms if self.factor else 0.0)


class Check(GrownMessage):
    """One measured value and its limits. `reason` names the failure of a value outside the limits."""

    LATER: ClassVar = frozenset({"placebos"})

    name: str
    reason: str
    measured: Measured
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    equals: Measured = None
    among: tuple[str, ...] | None = None
    placebos: PlaceboBasis | None = None
    """How the limit was computed. None: the limit is not that of the placebos."""

    @property
    def passed(self) -> bool:
        """Return whether the value is within every limit. nan is within no limit."""
        if self.among is not None:
            return self.measured in self.among
        if self.at_least is None and self.above is None and self.at_most is None:
            return self.measured == self.equals
        value = self.measured
        if not isinstance(value, int | float):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )


class GateReport(Message):
    """The result of a gate. A gate that fails returns a report, too; it raises nothing."""

    gate: Gate
    seed_id: str
    fence: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    """Notes for people about evidence that this run does not collect."""

    @property
    def passed(self) -> bool:
        """Return whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return the reasons of the failed checks, in the order of the checks. Empty: the gate passed."""
        return tuple(dict.fromkeys(check.reason for check in self.checks if not check.passed))


class Transition(Message):
    """Record of one step of a seed's lifecycle."""

    seed_id: str
    slot: str
    blueprint_id: str
    before: Stage
    after: Stage
    fence: int
    cause: str
    """The gate whose judgement led to the transition, or the reason for the end of the seed."""
    command_id: str


class HostChange(Message):
    """A change of the host. Every process of the trainer applies the change once, at a fence."""

    command_id: str
    run_id: str
    generation: int
    seed_id: str
    fence: int


class GraftPlan(GrownMessage, HostChange):
    """Plan to attach a seed. The weights of the seed are sent separately, as `Weights`."""

    LATER: ClassVar = frozenset({"confidence", "rate_scale", "copies"})

    slot: str
    ordinal: int
    blueprint_id: str
    blend: BlendSpec
    start_step: int
    """First optimizer step with the seed. The ramp of alpha and the schedule of the seed's learning rate start at this
    step."""
    isolated: bool
    warmup_steps: int
    """Steps over which the seed's learning rate warms up."""
    asked_device: str
    weights: Literal[""] = ""
    """Always empty. The key remains because the first versions wrote it into checkpoints, which store the plan as JSON.
    """
    weights_digest: str
    """SHA-256 of the seed's initial weights in the form of `esper.ground.tensors.to_bytes`."""
    confidence: float | None = None
    """Confidence of a CONFIDENCE blend, 0..1, computed from the command's logits. None: the blend has another mode."""
    rate_scale: float = 1.0
    """Factor on the learning rates of the seed's schedule."""
    copies: int = 1
    """Number of modules of the blueprint in the seed."""


Weights = Mapping[str, bytes]
"""Initial weights of seeds as made by `esper.ground.tensors.to_bytes`. The key is the SHA-256 of the weights in hex."""


class JoinPlan(HostChange):
    """Plan to end a seed's isolation. Afterwards the gradient of the seed reaches the host."""

    def amended(self, plan: GraftPlan) -> GraftPlan:
        """Return the seed's graft plan after this change."""
        return plan.model_copy(update={"isolated": False})


class RatePlan(HostChange):
    """Plan to set the factor on the learning rates of a seed's schedule."""

    rate_scale: float
    """The new factor. It replaces an earlier factor."""

    def amended(self, plan: GraftPlan) -> GraftPlan:
        """Return the seed's graft plan after this change."""
        return plan.model_copy(update={"rate_scale": self.rate_scale})


class ConfidencePlan(HostChange):
    """Plan to change the confidence of a seed with a CONFIDENCE blend. It may end the seed's isolation as well."""

    confidence: float
    """0..1"""
    joins: bool
    """True: the plan also ends the seed's isolation, because a command leads to at most one plan per seed."""

    def amended(self, plan: GraftPlan) -> GraftPlan:
        """Return the seed's graft plan after this change."""
        return plan.model_copy(update={"confidence": self.confidence, "isolated": plan.isolated and not self.joins})


class RemovePlan(HostChange):
    """Plan to detach a culled seed without a trace."""


class AdoptPlan(HostChange):
    """Plan to continue with the fork that won a tournament, instead of the live host. The state of the fork is sent
    separately, as a snapshot.
    """

    graft: GraftPlan
    """The plan that attached the seed to its fork. It becomes the seed's plan in the live host."""
    before_sha256: str
    """Digest of the weights of the tournament's control at its last step. The live host must have the same digest."""
    after_sha256: str
    """Digest of the weights of the fork at its last step. The live host must have this digest afterwards."""


Amendment = JoinPlan | RatePlan | ConfidencePlan
"""A change of a seed that stays in the host. The change is also made in the seed's graft plan, so that a restore
repeats it.
"""
ChangePlan = GraftPlan | Amendment | RemovePlan
"""A plan that changes the live host in place."""
HostPlan = ChangePlan | AdoptPlan


class GraftReceipt(Message):
    """Receipt of an applied plan. If the plan is applied again, nothing changes and the receipt is the same."""

    command_id: str
    seed_id: str
    generation: int
    step: int
    parameters: int
    """Parameters of the host after the change, seeds included."""


class Outcome(StrEnum):
    """Outcomes of a seed in field reports."""

    SUCCESS = "SUCCESS"
    NEUTRAL = "NEUTRAL"
    REGRESSION = "REGRESSION"
    ABORTED = "ABORTED"


TOO_SMALL = frozenset({"no_improvement", "within_placebo"})
"""Reasons of G2 after which a seed may be judged again: it gained too little. Each other reason ends a seed."""


class FieldReport(PublicMessage, GrownMessage):
    """Result of a command for one seed. Later decisions of the policy use it."""

    LATER: ClassVar = frozenset({"copies", "traceparent"})

    report_id: str
    command_id: str
    run_id: str
    generation: int
    seed_id: str
    blueprint_id: str
    slot: str
    outcome: Outcome
    reasons: tuple[str, ...]
    gain: Figure | None
    """Relative gain over the control fork at G2. None: not measured."""
    z: Figure | None
    pick_gain: Figure | None
    """Relative gain over the control fork on the pick shard. The forks of a tournament are ranked by this gain. None:
    not measured."""
    window_fences: tuple[int, int]
    """First and last fence of the observation."""
    issued_at: AwareDatetime
    policy_version: str
    copies: int = 1
    """Number of modules of the blueprint in the seed."""
    traceparent: ShortText = ""
    """The span in which the report was made, as a W3C traceparent. "": there was none."""
