"""All that one host's future depends on, copied. It is handed about whole; only the trainer looks inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from esper.leyline.reports import GraftPlan


@dataclass(frozen=True, eq=False)
class HostSnapshot:
    """A host at a step: nothing in it shares memory with the host it was taken from."""

    step: int
    topology: tuple[GraftPlan, ...]
    tensors: dict[str, Tensor]
    """Parameters and buffers of host and seeds, those that `state_dict` leaves out included."""
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    seed_optimizers: dict[str, dict[str, Any]]
