"""What Tamiyo answers: a decision of its policy, or a hold with its reason. Never a stand-in for a failure."""

from __future__ import annotations

from enum import StrEnum

from esper.leyline.base import Message
from esper.leyline.commands import Command


class HoldReason(StrEnum):
    """Why nothing germinates at a fence; each is made from measured state."""

    NO_OPEN_SLOT = "no_open_slot"
    BUDGET_SPENT = "budget_spent"
    GROWTH_OVER = "growth_over"
    POLICY_CHOICE = "policy_choice"
    RISK = "risk"


class Hold(Message):
    """Nothing germinates at this fence, with the figure that decided and its limit where there is one."""

    fence: int
    reason: HoldReason
    detail: str
    measured: float | None = None
    limit: float | None = None


class Pair(Message):
    """A blueprint that may be tried in a slot, with what the dry run found of it."""

    slot: str
    blueprint_id: str
    parameters: int
    flops: int
    """Modelled FLOPs of one forward and backward pass on one global batch."""
    risk: float
    mesh: tuple[str, ...]
    """Host layers that the seed depends on there."""


class Decision(Message):
    """A policy's own answer to a round: pairs to try together, or a reasoned hold."""

    decision_id: str
    fence: int
    policy: str
    policy_version: str
    pairs: tuple[Pair, ...]
    replica_of: str | None = None
    hold: str | None = None
    """The policy's reason to try nothing now; with it, `pairs` is empty."""
    risk: float | None = None
    """The policy's own estimate, 0..1; None where it makes none."""
    logits: tuple[float, ...] = ()


class Verdict(Message):
    """What came of one fence: a command to carry out, or a hold; and the policy's decision, if it was asked."""

    outcome: Command | Hold
    decision: Decision | None
