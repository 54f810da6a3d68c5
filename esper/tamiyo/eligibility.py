"""Finds the (slot, blueprint) pairs that may be germinated at a fence.

If there is no pair, finds the reason and the measured value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from esper.leyline.decisions import Decision, Hold, HoldReason, Pair
from esper.leyline.signals import Level
from esper.leyline.state import RoundState


@dataclass(frozen=True)
class GrowthWindow:
    """The first fence at which seeds may germinate, and the limits of a single seed."""

    first_fence: int
    round_steps: int
    """Optimizer steps of a round."""
    fences_beside_ramp: int
    """Least number of fences from a seed's germination to its fossilisation, without the fences of its ramp."""
    shortest_ramp: int
    """Length of the shortest ramp that the policy may choose, in optimizer steps."""
    stack: int
    """Largest number of seeds in one slot."""
    seed_parameters: int
    """Largest number of parameters of one seed."""
    seed_flops: int
    """Largest modelled FLOPs of one seed, forward and backward on one batch."""
    fences_of_fork: int = 0
    """Fences from a seed's germination to its entry into the live host, if its ramp begins at the germination. 0: the
    ramp begins at the entry."""

    def fences_to_fossil(self, ramp_steps: int) -> int:
        """Return the least number of fences from germination to fossilisation of a seed with a ramp of `ramp_steps`."""
        return self.fences_beside_ramp + max(1, math.ceil(ramp_steps / self.round_steps) - self.fences_of_fork)

    def over(self, state: RoundState, ramp_steps: int) -> Hold | None:
        """Return a hold if a seed that germinates now with this ramp could not be fossilised before the run's end."""
        last = state.last_fence - self.fences_to_fossil(ramp_steps)
        if state.fence <= last:
            return None
        detail = f"a seed with a ramp of {ramp_steps} steps could not be fossilised before the end"
        return _hold(state, HoldReason.GROWTH_OVER, detail, state.fence, last)


def eligible(state: RoundState, window: GrowthWindow) -> tuple[Pair, ...] | Hold:
    """Return every eligible pair, in the order of the survey, or a hold if no seed may germinate."""
    fence = state.fence
    if fence < window.first_fence:
        return _hold(state, HoldReason.NO_OPEN_SLOT, "slots open later", fence, window.first_fence)
    if over := window.over(state, window.shortest_ramp):
        return over
    if state.level is not None and state.level >= Level.CONSERVATIVE:
        return _hold(state, HoldReason.RISK, "emergency level", state.level, Level.CONSERVATIVE)
    if state.incubating:
        return _hold(state, HoldReason.NO_OPEN_SLOT, "a tournament is in flight", None, None)
    if state.tests_used >= state.tests_allowed:
        return _hold(state, HoldReason.BUDGET_SPENT, "tests of the run", state.tests_used, state.tests_allowed)
    slots = {slot.spec.path: slot for slot in state.slots if slot.occupied < window.stack and not slot.closed}
    if not slots:
        failed = any(slot.closed for slot in state.slots)
        detail = "every slot is full, or closed by a reset that failed" if failed else "every slot is full"
        return _hold(state, HoldReason.NO_OPEN_SLOT, detail, len(state.slots), None)
    bearable = [pair for pair in state.options if not over_seed_budgets(pair, window)]
    if not bearable:
        detail = "no pair is within both growth.memory_budget and growth.cost_budget"
        return _hold(state, HoldReason.BUDGET_SPENT, detail, None, None)
    unbound = [pair for pair in bearable if pair.slot in slots]
    unbound = [pair for pair in unbound if pair.blueprint_id not in slots[pair.slot].embargoed]
    if not unbound:
        return _hold(state, HoldReason.NO_OPEN_SLOT, "every open pair is embargoed", len(state.options), None)
    room = state.parameter_budget - state.added_parameters
    fitting = tuple(pair for pair in unbound if pair.parameters <= room)
    if not fitting:
        smallest = min(pair.parameters for pair in unbound)
        return _hold(state, HoldReason.BUDGET_SPENT, "parameters left for the smallest seed", smallest, room)
    return fitting


def tournaments_spent(state: RoundState, decision: Decision) -> Hold | None:
    """Return a hold if a decision begins a tournament and the run may hold no more. A replica begins none."""
    allowed = state.tournaments_allowed
    if allowed is None or state.tournaments_used < allowed or decision.replica_of is not None:
        return None
    return _hold(state, HoldReason.BUDGET_SPENT, "tournaments of the run", state.tournaments_used, allowed)


def over_seed_budgets(pair: Pair, window: GrowthWindow) -> tuple[str, ...]:
    """Return the config keys of the single-seed budgets that a pair exceeds."""
    memory = ("growth.memory_budget",) if pair.parameters > window.seed_parameters else ()
    cost = ("growth.cost_budget",) if pair.flops > window.seed_flops else ()
    return (*memory, *cost)


def over_budgets(pair: Pair, window: GrowthWindow, room: int) -> tuple[str, ...]:
    """Return the config keys of all budgets that a pair exceeds.

    Args:
        room: Number of parameters that further seeds may add to the host.
    """
    added = ("growth.parameter_budget",) if pair.parameters > room else ()
    return (*over_seed_budgets(pair, window), *added)


def _hold(state: RoundState, reason: HoldReason, detail: str, measured: float | None, limit: float | None) -> Hold:
    return Hold(fence=state.fence, reason=reason, detail=detail, measured=measured, limit=limit)
