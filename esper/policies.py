"""What a policy of your own needs; docs/policies.md explains it with an example.

A policy is any object with the attributes and methods of `Policy`. Give it to a run by `InProcess(policy=...)` or
`OnRay(policy=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from esper.leyline.commands import MAX_RATE_SCALE, BlendMode, BlendSchedule, BlendSpec
from esper.leyline.decisions import Decision, Pair, RateScale
from esper.leyline.ids import Purpose, derive_id
from esper.leyline.ports import Policy
from esper.leyline.reports import FieldReport, Outcome
from esper.leyline.stages import IN_HOST, LIVE, Stage
from esper.leyline.state import RoundState, SeedState, SlotState, TrainingState

__all__ = [
    "IN_HOST",
    "LIVE",
    "MAX_RATE_SCALE",
    "BlendMode",
    "BlendSchedule",
    "BlendSpec",
    "Decision",
    "FieldReport",
    "Outcome",
    "Pair",
    "Policy",
    "RateScale",
    "RoundState",
    "SeedState",
    "SlotState",
    "Stage",
    "TrainingState",
    "make_decision",
]


def make_decision(
    policy: Policy,
    state: RoundState,
    *,
    pairs: Sequence[Pair] = (),
    blend: BlendSpec | None = None,
    logits: Sequence[float] = (),
    replica_of: str | None = None,
    risk: float | None = None,
    hold: str | None = None,
    rates: Sequence[RateScale] = (),
    go_back_to: int | None = None,
) -> Decision:
    """Return the decision of a policy at the fence of a state. Its id and fence, and the policy's name and version, are
    filled in.

    Args:
        policy: The policy that decides, usually `self`.
        state: The state that `Policy.decide` got.
        pairs: Pairs of `eligible` to try in one tournament. A decision without pairs needs `hold` or `go_back_to`, if
            `eligible` has pairs.
        blend: The blend of the seeds of `pairs`. Required if there are pairs.
        logits: Two or more finite logits. Only a CONFIDENCE blend uses them, and requires them.
        replica_of: Id of a seed in the host of which the only pair is a replica.
        risk: The policy's estimate of the risk, 0..1.
        hold: The reason to try no pair now, a text for the journal.
        rates: Factors for the learning rates of seeds in the host, 0 to `MAX_RATE_SCALE`.
        go_back_to: A fence of `state.checkpoints`. The decision then has nothing else.

    Raises:
        pydantic.ValidationError: a value has a wrong type.
    """
    return Decision(
        decision_id=derive_id(state.run_id, Purpose.DECISION, fence=state.fence, step=state.training.step),
        fence=state.fence,
        policy=policy.name,
        policy_version=policy.version,
        pairs=tuple(pairs),
        replica_of=replica_of,
        hold=hold,
        risk=risk,
        rates=tuple(rates),
        go_back_to=go_back_to,
        blend=blend,
        logits=tuple(logits),
    )
