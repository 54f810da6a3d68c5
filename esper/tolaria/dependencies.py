"""What a plan must carry before it may touch a host. It checks and refuses; it changes nothing (plan 3.4.1)."""

from __future__ import annotations

from esper.errors import DependencyViolationError
from esper.ground.tensors import blob_digest
from esper.leyline.reports import GraftPlan, HostPlan, Weights
from esper.telemetry.events import Severity, reported


def check_plan(plan: HostPlan, weights: Weights, *, run_id: str, generation: int, modules: frozenset[str]) -> None:
    """Let a plan pass, or refuse it.

    Raises:
        DependencyViolationError: an id is missing, the run or generation is another's, the target is not in this
            host, or the weights are not given or not those that were digested. The host is untouched.
    """
    what = f"plan for seed {plan.seed_id or '?'}"
    checks = [
        (bool(plan.command_id), "command id missing", ""),
        (bool(plan.seed_id), "seed id missing", ""),
        (plan.run_id == run_id, "another run's", f"run {plan.run_id}, here {run_id}"),
        (plan.generation == generation, "another generation's", f"{plan.generation}, here {generation}"),
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
