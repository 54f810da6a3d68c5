"""Makes the graft plan of a candidate: builds its module and draws its weights. No host is changed.

Makes the order by which candidates of a refused tournament train on, too.
"""

from __future__ import annotations

from collections.abc import Collection

from esper.ground.random_streams import stream_key
from esper.ground.tensors import blob_digest
from esper.kasmina.blueprints.catalogue import Blueprint
from esper.kasmina.blueprints.seed_weights import weights_of
from esper.leyline.commands import BlendSpec, Candidate
from esper.leyline.incubation import IncubationOrder
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import SlotSpec


def draw_weights(candidate: Candidate, spec: SlotSpec, blueprint: Blueprint, *, run_seed: int, fence: int) -> bytes:
    """Return a candidate's initial weights, serialized. They depend only on run seed, slot, blueprint, number of copies
    and fence.

    Raises:
        SeedBuildFailed: the blueprint's factory raised.
    """
    key = stream_key(run_seed, "seed", candidate.slot, candidate.blueprint_id, fence)
    return weights_of(blueprint.build(spec, seed_key=key, copies=candidate.copies))


def plan_seed(
    candidate: Candidate,
    spec: SlotSpec,
    blueprint: Blueprint,
    *,
    run_id: str,
    generation: int,
    command_id: str,
    run_seed: int,
    fence: int,
    step: int,
    ordinal: int,
    blend: BlendSpec,
    warmup_steps: int,
    confidence: float | None = None,
) -> tuple[GraftPlan, bytes]:
    """Return the plan that attaches a candidate to a fork, and the candidate's serialized weights.

    Args:
        confidence: The confidence of a CONFIDENCE blend. None: the mode has no confidence.

    Raises:
        SeedBuildFailed: the blueprint's factory raised. No host was changed.
    """
    weights = draw_weights(candidate, spec, blueprint, run_seed=run_seed, fence=fence)
    plan = GraftPlan(
        command_id=command_id,
        run_id=run_id,
        generation=generation,
        seed_id=candidate.seed_id,
        fence=fence,
        slot=candidate.slot,
        ordinal=ordinal,
        blueprint_id=candidate.blueprint_id,
        blend=blend,
        confidence=confidence,
        start_step=step,
        isolated=False,
        warmup_steps=warmup_steps,
        asked_device=spec.device,
        weights_digest=blob_digest(weights),
        copies=candidate.copies,
    )
    return plan, weights


def later_look(
    before: IncubationOrder, order_id: str, seed_ids: Collection[str], due_fence: int, last_step: int
) -> IncubationOrder:
    """Return the order by which some forks of a refused tournament train on, to be judged again at a later fence. After
    this look no fork trains on (`keeps` is 0).

    Args:
        before: The order of the tournament, or the last order by which its forks trained on.
        seed_ids: The seeds of the forks that train on.
        last_step: The optimizer step of the fence.
    """
    own = [pair for pair in zip(before.plans, before.seed_flops, strict=True) if pair[0].seed_id in seed_ids]
    later = {
        "order_id": order_id,
        "due_fence": due_fence,
        "last_step": last_step,
        "halving_step": None,
        "rungs": (last_step,) if before.rungs else (),
        "rung_units": before.rung_units[-1:],
        "plans": tuple(plan for plan, _ in own),
        "seed_flops": tuple(flops for _, flops in own),
        "keeps": 0,
        "goes_on_from": before.last_step,
    }
    return before.model_copy(update=later)
