"""Tamiyo's answers: a decision of its policy, or a hold with a reason. A failure is raised as an error and never
becomes an answer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from esper.leyline.base import GrownMessage, Message, PublicMessage
from esper.leyline.commands import MAX_LOGITS, BlendSpec, Command


class HoldReason(StrEnum):
    """Reasons why no seed germinates at a fence. Each reason depends only on measured state."""

    NO_OPEN_SLOT = "no_open_slot"
    BUDGET_SPENT = "budget_spent"
    GROWTH_OVER = "growth_over"
    POLICY_CHOICE = "policy_choice"
    RISK = "risk"


class Hold(Message):
    """The answer that no seed germinates at this fence. It has the reason, the value that decided, and the limit of
    that value, if it has one.
    """

    fence: int
    reason: HoldReason
    detail: str
    measured: float | None = None
    limit: float | None = None


class Pair(PublicMessage, GrownMessage):
    """A slot and a blueprint that may be tried in it, with measurements from the dry run."""

    LATER: ClassVar = frozenset({"copies"})

    slot: str
    blueprint_id: str
    parameters: int
    flops: int
    """Modelled FLOPs of one forward and backward pass on one global batch."""
    risk: float
    mesh: tuple[str, ...]
    """Host layers on which the seed depends in this slot."""
    copies: int = 1
    """Number of modules of the blueprint in the seed. Parameters and FLOPs are those of all of them."""


class RateScale(PublicMessage):
    """A factor for the learning rates of one seed in the host, from this fence on."""

    seed_id: str
    scale: float
    """0 or more, and at most `MAX_RATE_SCALE`. 1: the rates of the seed's schedule."""


class Decision(PublicMessage):
    """The policy's answer at a fence: pairs to try in one tournament, or a hold with its reason. It may also change
    learning rates."""

    decision_id: str
    fence: int
    policy: str
    policy_version: str
    pairs: tuple[Pair, ...]
    replica_of: str | None = None
    hold: str | None = None
    """The policy's reason to try no pair now; `pairs` is then empty. None: the policy tries `pairs`."""
    risk: float | None = None
    """The policy's estimate of the risk, 0..1. None: the policy estimates no risk."""
    rates: tuple[RateScale, ...] = ()
    """Changes of learning rates. These changes are made even if no pair is tried."""
    go_back_to: int | None = None
    """A fence of `RoundState.checkpoints` to which the whole run goes back. `pairs` and `rates` are then empty, and
    `hold` is None. None: the run continues."""
    blend: BlendSpec | None = None
    """The blend of all seeds of `pairs`, for their whole life. Required if there are pairs."""
    logits: Annotated[tuple[float, ...], Field(max_length=MAX_LOGITS)] = ()
    """The policy's logits. Only a CONFIDENCE blend uses them."""


class Verdict(Message):
    """Tamiyo's answer at one fence: a command or a hold. It also has the policy's decision, if that has an effect."""

    outcome: Command | Hold
    decision: Decision | None
    rates: tuple[Command, ...] = ()
    """Commands that change learning rates, to be carried out before `outcome`."""
