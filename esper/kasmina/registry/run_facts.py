"""What Kasmina is told once about a run. It decides nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunFacts:
    """Identity, length and sizes of one run."""

    run_id: str
    generation: int
    run_seed: int
    batch_size: int
    fence_steps: tuple[int, ...]
    """Optimizer step of every fence; the last is the end of the run."""
    host_parameters: int
    host_bytes: int
    host_flops: int
    """Modelled FLOPs of one optimizer step of the host without seeds."""
