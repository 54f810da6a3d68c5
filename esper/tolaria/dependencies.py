"""Checks that a plan is complete and addressed to this host, before it is applied."""

from __future__ import annotations

from esper.errors import DependencyViolationError
from esper.ground.tensors import blob_digest
from esper.leyline.reports import AdoptPlan, GraftPlan, HostPlan, Weights
from esper.telemetry.events import Severity, reported


def check_plan(plan: HostPlan, weights: Weights, *, run_id: str, generation: int, modules: frozenset[str]) -> None:
    """Refuse a plan that is incomplete or addressed to another host.

    Args:
        weights: Digest -> weights of the seed to graft.
        run_id: Id of this host's run.
        generation: Generation of this host.
        modules: Module paths of this host.

    Raises:
        DependencyViolationError: an id is missing; the plan is for another run or generation; its slot is not in this
            host; or its weights are missing, or do not have the digest in the plan.
    """
    what = f"plan for seed {plan.seed_id or '?'}"
    checks = [
        (bool(plan.command_id), "command id missing", ""),
        (bool(plan.seed_id), "seed id missing", ""),
        (plan.run_id == run_id, "another run's", f"run {plan.run_id}, here {run_id}"),
        (plan.generation == generation, "another generation's", f"{plan.generation}, here {generation}"),
    ]
    if isinstance(plan, AdoptPlan):
        inside = (plan.graft.run_id, plan.graft.generation, plan.graft.seed_id)
        checks += [
            (plan.graft.slot in modules, "target not in the host", plan.graft.slot),
            (inside == (plan.run_id, plan.generation, plan.seed_id), "the graft of another plan", str(inside)),
        ]
    if isinstance(plan, GraftPlan):
        blob = weights.get(plan.weights_digest)
        checks += [
            (plan.slot in modules, "target not in the host", plan.slot),
            (blob is not None, "weights not given", plan.weights_digest),
            (
                blob is None or blob_digest(blob) == plan.weights_digest,
                "weights are not those digested",
                plan.weights_digest,
            ),
        ]
    for holds, missing, detail in checks:
        if not holds:
            error = DependencyViolationError(what, missing, detail)
            raise reported(error, "dependency_violation", Severity.ERROR, subject=what, missing=missing, detail=detail)
