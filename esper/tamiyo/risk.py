"""The limits of risk, applied after the policy. A tournament that costs too much loses its most expensive pairs.

If a figure is beyond its limit, the decision becomes a hold that names the figure and the limit. A figure that was not
measured is not compared with its limit. But a missing figure lowers the coverage, and the coverage has a limit, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from esper.leyline.decisions import Decision, Hold, HoldReason
from esper.leyline.state import RoundState
from esper.tamiyo.settings import RiskConfig


@dataclass(frozen=True)
class ForkCosts:
    """What the forks of a tournament cost in one optimizer step, beside the seeds of its pairs."""

    host_flops: int
    """Modelled FLOPs of the host, forward and backward on one batch."""
    unit_flops: float
    """FLOPs by which the cost of a tournament is divided: those of the host, or more if the host is tiny."""
    placebos: int = 0
    """Number of placebos in a tournament that is not of a replica."""


def coverage(state: RoundState) -> float:
    """Return the share of the state's features that were measured, 0..1."""
    training = state.training
    features = (
        training.train_loss,
        training.gradient_norm,
        training.best_train_loss,
        *(seed.gain for seed in state.seeds if seed.ordinal is not None),
        *(pair.flops for pair in state.options),
    )
    return sum(value is not None for value in features) / len(features)


def loss_spike(state: RoundState) -> float | None:
    """Return the rise of the round's mean loss over the lowest mean loss of an earlier round, divided by this lowest
    loss. None in the first round.
    """
    now, best = state.training.train_loss, state.training.best_train_loss
    return None if now is None or best is None else (now - best) / abs(best) if best else None


def cost_ratio(decision: Decision, costs: ForkCosts) -> float:
    """Return the modelled FLOPs of the forks of a decision, its control and its placebos, divided by
    `costs.unit_flops`. The FLOPs of the placebos' own seeds count 0, because they are few.
    """
    forks = len(decision.pairs) + 1 + (costs.placebos if decision.replica_of is None else 0)
    return (forks * costs.host_flops + sum(pair.flops for pair in decision.pairs)) / costs.unit_flops


def milder(decision: Decision, limits: RiskConfig, costs: ForkCosts) -> Decision:
    """Remove the most expensive pairs of a decision until the modelled cost is within its limit. Return the new
    decision, in the order of the old one. Of equally expensive pairs the last is removed first. One pair always stays.
    """
    while len(decision.pairs) > 1 and cost_ratio(decision, costs) > limits.max_cost_ratio:
        pairs = list(decision.pairs)
        _, dearest = max((pair.flops, place) for place, pair in enumerate(pairs))
        del pairs[dearest]
        decision = decision.model_copy(update={"pairs": tuple(pairs)})
    return decision


def assess(state: RoundState, decision: Decision, limits: RiskConfig, costs: ForkCosts) -> Hold | None:
    """Return a hold for the first figure beyond its limit. None: the decision may be carried out."""
    figures: tuple[tuple[str, float | None, float, bool], ...] = (
        ("loss spike", loss_spike(state), limits.max_loss_spike, False),
        ("policy risk", decision.risk, limits.max_policy_risk, True),
        ("isolation violations", state.isolation_violations, limits.max_isolation_violations, False),
        ("modelled cost", cost_ratio(decision, costs), limits.max_cost_ratio, False),
    )
    for name, value, limit, inclusive in figures:
        if value is not None and (value > limit or (inclusive and value == limit)):
            return Hold(fence=state.fence, reason=HoldReason.RISK, detail=name, measured=value, limit=limit)
    measured = coverage(state)
    if measured <= limits.min_coverage:
        least = limits.min_coverage
        return Hold(fence=state.fence, reason=HoldReason.RISK, detail="coverage", measured=measured, limit=least)
    return None
