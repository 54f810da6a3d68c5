"""Makes the graft plan of a candidate: builds its module and draws its weights. No host is changed."""

from __future__ import annotations

from esper.ground.random_streams import stream_key
from esper.ground.tensors import blob_digest
from esper.kasmina.blueprints.catalogue import Blueprint
from esper.kasmina.blueprints.seed_weights import weights_of
from esper.leyline.commands import BlendSpec, Candidate
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
