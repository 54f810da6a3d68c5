"""The placebos of a tournament: which useless seed is attached to which slot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from esper.ground.tensors import blob_digest
from esper.kasmina.blueprints.catalogue import BlueprintRegistry
from esper.kasmina.blueprints.placebos import name_of
from esper.kasmina.incubation.planning import draw_weights
from esper.leyline.commands import Candidate
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import SlotSpec


def placebo_plans(
    plans: Sequence[GraftPlan], count: int, specs: Mapping[str, SlotSpec], blueprints: BlueprintRegistry, run_seed: int
) -> tuple[GraftPlan, ...]:
    """Return the plans of `count` placebos, spread over the slots of the candidates.

    A placebo has the blend, the schedule and the number of copies of a candidate in its slot.
    """
    first = {plan.slot: plan for plan in reversed(plans)}
    likes = [first[place_of(place, count, first)] for place in range(count)]
    return tuple(_plan(like, place, specs, blueprints, run_seed) for place, like in enumerate(likes))


def place_of(place: int, count: int, slots: Iterable[str]) -> str:
    """Return the slot of a placebo by its number among `count`. The placebos are spread over the slots by name."""
    names = sorted(set(slots))
    return names[place * len(names) // count]


def placebo_weights(plan: GraftPlan, spec: SlotSpec, blueprints: BlueprintRegistry, run_seed: int) -> bytes:
    """Return the initial weights of a placebo, serialized. They depend only on run seed, slot, name and fence."""
    candidate = Candidate(slot=plan.slot, blueprint_id=plan.blueprint_id, seed_id=plan.seed_id, copies=plan.copies)
    blueprint = blueprints.get(plan.blueprint_id)
    return draw_weights(candidate, spec, blueprint, run_seed=run_seed, fence=plan.fence)


def _plan(
    like: GraftPlan, place: int, specs: Mapping[str, SlotSpec], blueprints: BlueprintRegistry, run_seed: int
) -> GraftPlan:
    named = like.model_copy(update={"blueprint_id": name_of(place), "seed_id": f"placebo-{place}"})
    weights = placebo_weights(named, specs[like.slot], blueprints, run_seed)
    return named.model_copy(update={"weights_digest": blob_digest(weights)})
