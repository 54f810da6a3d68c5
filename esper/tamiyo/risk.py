"""The limits of risk, applied after the policy. A tournament that costs too much is shortened.

If a figure is beyond its limit, the decision becomes a hold that names the figure and the limit. A figure that was not
measured is not compared with its limit. But a missing figure lowers the coverage, and the coverage has a limit, too.
"""

from __future__ import annotations

from esper.leyline.decisions import Decision, Hold, HoldReason
from esper.leyline.state import RoundState
from esper.tamiyo.settings import RiskConfig


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


def cost_ratio(decision: Decision, host_flops: int) -> float:
    """Return the modelled FLOPs of the decision's forks and their control, divided by the FLOPs of the host."""
    return (len(decision.pairs) + 1) + sum(pair.flops for pair in decision.pairs) / host_flops


def milder(decision: Decision, limits: RiskConfig, host_flops: int) -> Decision:
    """Remove the last pairs of a decision until the modelled cost is within its limit. Return the new decision.

    One pair always stays.
    """
    while len(decision.pairs) > 1 and cost_ratio(decision, host_flops) > limits.max_cost_ratio:
        decision = decision.model_copy(update={"pairs": decision.pairs[:-1]})
    return decision


def assess(state: RoundState, decision: Decision, limits: RiskConfig, host_flops: int) -> Hold | None:
    """Return a hold for the first figure beyond its limit. None: the decision may be carried out."""
    figures: tuple[tuple[str, float | None, float, bool], ...] = (
        ("loss spike", loss_spike(state), limits.max_loss_spike, False),
        ("policy risk", decision.risk, limits.max_policy_risk, True),
        ("isolation violations", state.isolation_violations, limits.max_isolation_violations, False),
        ("modelled cost", cost_ratio(decision, host_flops), limits.max_cost_ratio, False),
    )
    for name, value, limit, inclusive in figures:
        if value is not None and (value > limit or (inclusive and value == limit)):
            return Hold(fence=state.fence, reason=HoldReason.RISK, detail=name, measured=value, limit=limit)
    measured = coverage(state)
    if measured <= limits.min_coverage:
        least = limits.min_coverage
        return Hold(fence=state.fence, reason=HoldReason.RISK, detail="coverage", measured=measured, limit=least)
    return None
