"""Refuses a network whose forward calls all of its children, because in a finished network the seeds are children,
too.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from esper.errors import TaskError
from esper.kasmina.host.attached import PREFIX, SeedHolder
from esper.tolaria.trainer import Trainer

MEND = (
    "it calls each of its own children, such as `for layer in self.children()`, and the seeds of a"
    " finished network are among them; call the layers by their names, or keep them in an nn.ModuleList of the network"
)


def check_children(trainer: Trainer, batch: Any, samples: int) -> None:  # Any: a batch of the task
    """Run a forward pass in evaluation mode while the host has a child with the name of the seeds; see `SeedHolder`.

    The host is unchanged afterwards.

    Args:
        batch: A batch of `samples` samples.

    Raises:
        TaskError: the forward pass called that child, or failed. Only `nn.Sequential` may call it.
    """
    host = trainer.host
    holder = SeedHolder(host)
    if holder.passes:
        return
    holder.register_forward_pre_hook(_refuse)
    host.add_module(PREFIX, holder)
    try:
        trainer.look_evaluating(batch, samples)
    finally:
        delattr(host, PREFIX)


def _refuse(holder: nn.Module, args: object) -> None:
    del holder, args
    raise TaskError("task.model", "its forward pass", MEND)
