"""What a run would try and cost, as `esper plan` prints it. Modelled from the dry run; nothing is trained."""

from __future__ import annotations

from typing import Any

from esper.kasmina.incubation import PROBE_BATCHES
from esper.prospect import Prospect


def forecast(prospect: Prospect) -> dict[str, Any]:
    """Sizes, slots, candidates and the modelled cost of the host and of a first tournament."""
    growth, data = prospect.config.growth, prospect.data
    budget = int(growth.parameter_budget * prospect.host_parameters)
    fitting = [pair for pair in prospect.options if pair.parameters <= budget]
    tried = sorted(fitting, key=lambda pair: (pair.risk, pair.slot, pair.blueprint_id))[: growth.candidates]
    step = prospect.host_flops
    return {
        "steps": prospect.total_steps,
        "rounds": len(prospect.fence_steps) - 1,
        "batch_size": data.batch_size,
        "samples": {name: len(shard) for name, shard in data.shards.items()},
        "host_parameters": prospect.host_parameters,
        "parameter_budget": budget,
        "g2_z": prospect.g2_limit(),
        "germinates_at_fences": [growth.first_fence, prospect.last_germination] if prospect.can_grow else None,
        "slots": [spec.model_dump(mode="json") for spec in prospect.specs],
        "candidates": [
            {
                "slot": pair.slot,
                "blueprint": pair.blueprint_id,
                "parameters": pair.parameters,
                "cost_ratio": pair.flops / step,
                "risk": pair.risk,
                "in_first_tournament": pair in tried,
            }
            for pair in prospect.options
        ],
        "host_gflops": prospect.total_steps * step / 1e9,
        "tournament_gflops": _tournament_flops(prospect, [pair.flops for pair in tried]) / 1e9,
        "twin_gflops": _twin_steps(prospect) * step / 1e9,
        "tournament_bytes": 4 * sum(prospect.host_bytes + 4 * pair.parameters for pair in tried)
        + 4 * prospect.host_bytes,
    }


def _twin_steps(prospect: Prospect) -> int:
    """Steps of a twin that the first tournament leaves; 0 where none is kept."""
    growth = prospect.config.growth
    if not (growth.twin and prospect.can_grow):
        return 0
    return prospect.total_steps - prospect.fence_steps[growth.first_fence + growth.due_rounds]


def _tournament_flops(prospect: Prospect, seeds: list[int]) -> float:
    """Births, both heats of the halving and their evaluations, with the cheaper half taken to go on."""
    growth, step = prospect.config.growth, prospect.host_flops
    start = min(growth.first_fence, len(prospect.fence_steps) - 2)
    length = prospect.fence_steps[start + 1] - prospect.fence_steps[start]
    steps = min(length, growth.probe_steps or length)
    halved = len(seeds) > 2 and growth.halving_step < steps
    evaluation = len(prospect.data.slice("pick", 0).indices) / prospect.data.batch_size / 3
    survivors = sorted(seeds)[: (len(seeds) + 1) // 2] if halved else seeds
    cost: float = sum(PROBE_BATCHES * (step + seed) for seed in seeds)
    if halved:
        cost += sum((growth.halving_step + evaluation) * (step + seed) for seed in seeds)
        cost += sum((steps - growth.halving_step + evaluation) * (step + seed) for seed in survivors)
    else:
        cost += sum((steps + evaluation) * (step + seed) for seed in seeds)
    return cost + (steps + 3 * evaluation) * step
