"""A task that trains in about a second and that a seed improves: points in four classes, and a linear host. Tests and
drills use it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from esper.task import Task

SETTINGS: dict[str, object] = {
    "growth.preset": "none",
    "growth.ramp_steps": 30,
    "growth.halving_step": 10,
    "growth.probe_ramp_steps": 5,
    "growth.probe_warmup_steps": 2,
    "growth.warmup_steps": 5,
    "growth.judge_samples": 256,
    "growth.replicas": 2,
    "growth.parameter_budget": 20.0,
    "growth.cost_budget": 12.0,
    "growth.memory_budget": 12.0,
}
"""Config values for the task, by dotted key. Ramps are short, and the budgets allow a seed that is larger than the
host."""
NOISE = 0.1
"""Standard deviation, in `clear_task`, of the channels on which no class depends. With 1.0, the forks of a tournament
learn too little in their 20 steps with some run seeds, and no seed wins."""


class Bands(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Points [C] in four classes. The class depends on two conditions: x0 is far from 0, and x1 is far from 0. No
    linear host can separate the classes.

    Args:
        others: Standard deviation of the channels on which no class depends.
    """

    def __init__(self, count: int, key: int, channels: int = 8, others: float = 1.0) -> None:
        self.inputs = torch.randn(count, channels, generator=torch.Generator().manual_seed(key))
        self.inputs[:, 2:] *= others
        far = (self.inputs[:, :2].abs() > 0.67).long()
        self.targets = 2 * far[:, 0] + far[:, 1]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class TinyHost(nn.Module):
    """[B, 8] -> [B, 4], linear, with a slot "body" of kind NC and a last layer "head"."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x_BC: Tensor) -> Tensor:
        """Return class scores of shape [B, 4]."""
        scores: Tensor = self.head(self.body(x_BC))
        return scores


def tiny_task(**changes: Any) -> Task:  # Any: values of fields of Task
    """Return the task: 320 steps of 32 samples, in 16 rounds."""
    fields: dict[str, Any] = {
        "model": TinyHost,
        "slots": ["body"],
        "train": Bands(1024, key=1),
        "valid": Bands(64, key=2),
        "test": Bands(512, key=3),
        "pick": Bands(256, key=4),
        "gate": Bands(256, key=5),
        "loss": nn.functional.cross_entropy,
        "batch_size": 32,
        "epochs": 10,
        "round_steps": 20,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=3e-2),
    }
    return Task(**(fields | changes))


def clear_task() -> Task:
    """Return the task with little noise. A seed wins on it with any run seed, so drills of seeds can be made."""
    shards = {"train": (1024, 1), "valid": (64, 2), "test": (512, 3), "pick": (256, 4), "gate": (256, 5)}
    return tiny_task(**{name: Bands(count, key, others=NOISE) for name, (count, key) in shards.items()})
