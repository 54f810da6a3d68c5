"""What was judged and done: gate reports, transitions, plans for the host, receipts, field reports."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Strict

from esper.leyline.base import Message
from esper.leyline.commands import BlendSpec
from esper.leyline.stages import Stage

Measured = bool | int | float | str | tuple[str, ...] | tuple[int, ...] | None


Figure = Annotated[float, Strict(False)]
"""A number that is stored and read back: one that is not finite stands in JSON as text, which strictness refuses."""


class Gate(StrEnum):
    """The gates of a seed's life."""

    G0 = "G0"
    G1 = "G1"
    G2 = "G2"
    G3 = "G3"
    G4 = "G4"
    G5 = "G5"


class Check(Message):
    """One measured value beside its limit; `reason` is what a failure is called."""

    name: str
    reason: str
    measured: Measured
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    equals: Measured = None
    among: tuple[str, ...] | None = None

    @property
    def passed(self) -> bool:
        """True if every stated limit holds; not-a-number holds none."""
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
    """A gate's answer: a value, never an exception."""

    gate: Gate
    seed_id: str
    fence: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to weigh the report: evidence that this run does not collect."""

    @property
    def passed(self) -> bool:
        """True if every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons of failure, in the order of the checks; empty where the gate passed."""
        return tuple(dict.fromkeys(check.reason for check in self.checks if not check.passed))


class Transition(Message):
    """A seed took one step of its lifecycle."""

    seed_id: str
    slot: str
    blueprint_id: str
    before: Stage
    after: Stage
    fence: int
    cause: str
    """The gate that let it pass or stopped it, or what ended it."""
    command_id: str


class HostChange(Message):
    """A change of the host, to be applied at a fence on every rank, once."""

    command_id: str
    run_id: str
    generation: int
    seed_id: str
    fence: int


class GraftPlan(HostChange):
    """Attach a seed. Its weights travel beside the plan, as `Weights`."""

    slot: str
    ordinal: int
    blueprint_id: str
    blend: BlendSpec
    start_step: int
    """The first optimizer step that the seed takes part in; its ramp and its learning rate count from it."""
    isolated: bool
    warmup_steps: int
    """Steps over which the seed's own learning rate rises; then cosine to the end of the run."""
    asked_device: str
    weights: Literal[""] = ""
    """Always empty. Checkpoints hold the plan as JSON, and the JSON of the first versions has this key."""
    weights_digest: str
    """SHA-256 of the seed's first weights, as `esper.ground.tensors.to_bytes` made them."""


Weights = Mapping[str, bytes]
"""The first weights of seeds, as `esper.ground.tensors.to_bytes` made them, by their SHA-256 in hex."""


class JoinPlan(HostChange):
    """End a seed's isolation: from here on its gradient reaches the host."""


class RemovePlan(HostChange):
    """Detach a culled seed without a trace."""


HostPlan = GraftPlan | JoinPlan | RemovePlan


class GraftReceipt(Message):
    """A plan was applied. The same plan again gives the same receipt and has no effect."""

    command_id: str
    seed_id: str
    generation: int
    step: int
    parameters: int
    """Parameters of the host after the change, its seeds included."""


class Outcome(StrEnum):
    """What became of a seed, as a field report says it."""

    SUCCESS = "SUCCESS"
    NEUTRAL = "NEUTRAL"
    REGRESSION = "REGRESSION"
    ABORTED = "ABORTED"


class FieldReport(Message):
    """What came of a command for one seed: the policy's experience."""

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
    """G2's relative gain over the control fork; None if never measured."""
    z: Figure | None
    pick_gain: Figure | None
    """Relative gain over the control fork on the pick shard, by which its tournament was ranked."""
    window_fences: tuple[int, int]
    """First and last fence of the observation."""
    issued_at: AwareDatetime
    policy_version: str
