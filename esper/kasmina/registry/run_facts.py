"""Constants that Kasmina needs for a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunFacts:
    """Identity, length and sizes of one run. `generation` changes when the run is restored. The rest is constant."""

    run_id: str
    generation: int
    run_seed: int
    batch_size: int
    fence_steps: tuple[int, ...]
    """Optimizer step of every fence. The last fence is the end of the run."""
    host_parameters: int
    host_bytes: int
    host_flops: int
    """Modelled FLOPs of one optimizer step of the host without seeds."""
