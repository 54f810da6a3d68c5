"""What a run will do, done once before it: a backward pass, a step, seeds in every slot. It keeps nothing of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from esper.errors import TaskError
from esper.task import Task
from esper.their_code import their_code
from esper.tolaria.loss import batch_loss
from esper.tolaria.modules import check_gradients
from esper.tolaria.trainer import call_model


def try_backward(task: Task, host: nn.Module, inputs: Any, targets: Any) -> None:  # Any: whatever the task batches
    """One forward and backward pass of the bare host.

    Raises:
        TaskError: the loss is not finite or has no gradient, or the gradients are not what training can use.
    """
    loss = batch_loss(task.loss, call_model(task, host, inputs), targets)
    if not loss.isfinite():
        raise TaskError("task.loss", loss.item(), "it is not finite on the first batch of an untrained model")
    if not loss.requires_grad:
        raise TaskError(
            "task.loss", loss.item(), "it has no gradient; return the tensor, neither a number nor detached"
        )
    with their_code("task.model", "the backward pass"):
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    check_gradients(host)
