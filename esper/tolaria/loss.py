"""Losses: of a batch, and of each sample. The loss lies where the outputs lie; nothing is moved to make it so."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor, nn

from esper.errors import LossDeviceMismatch, TaskError
from esper.task import Loss, Task
from esper.telemetry.events import Severity, severe
from esper.their_code import their_code


def batch_loss(loss: Loss, output: Any, target: Any) -> Tensor:
    """The scalar mean loss of a batch, on the device of the outputs (#22).

    Raises:
        LossDeviceMismatch: outputs and targets lie on different devices.
        TaskError: the loss is no scalar tensor.
    """
    _check_devices(output, target)
    with their_code("task.loss", "the loss of a batch"):
        value = loss(output, target)
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise TaskError("task.loss", _shape(value), "it must return a scalar tensor, the mean over the batch")
    return value


def sample_loss(task: Task) -> Loss:
    """The task's loss per sample, [B]: the task's own, or derived from a torch loss that has `reduction`.

    Raises:
        TaskError: neither is there.
    """
    if task.sample_loss is not None:
        return task.sample_loss
    unreduced = _unreduced(task.loss)
    if unreduced is None:
        name = getattr(task.loss, "__name__", type(task.loss).__name__)
        raise TaskError("task.sample_loss", None, f"the loss {name} has no `reduction`; give (output, target) -> [B]")

    def per_sample(output: Any, target: Any) -> Tensor:
        losses = unreduced(output, target)
        return losses if losses.dim() < 2 else losses.flatten(1).mean(dim=1)

    return per_sample


def _unreduced(loss: Loss) -> Loss | None:
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction"):
            return None
        if loss.reduction != "mean":
            raise TaskError("task.loss", f"reduction={loss.reduction!r}", "use 'mean', or give task.sample_loss")
        single = copy.deepcopy(loss)
        setattr(single, "reduction", "none")  # noqa: B010  # torch types it as Tensor | Module
        return single
    try:
        parameters = inspect.signature(loss).parameters
    except ValueError:  # a builtin without a signature: then it cannot be seen to have `reduction`
        return None
    if "reduction" not in parameters:
        return None
    return lambda output, target: loss(output, target, reduction="none")  # type: ignore[call-arg]  # seen just above


def check_sample_losses(losses: Any, batch: int) -> Tensor:
    """One loss per sample.

    Raises:
        TaskError: the shape is not [B].
    """
    if not isinstance(losses, Tensor) or losses.shape != (batch,):
        raise TaskError("task.sample_loss", _shape(losses), f"it must return one loss per sample, [{batch}]")
    return losses


def metric_values(values: Any, batch: int) -> Tensor:
    """A metric's values, [N], whose mean counts; one value for a whole batch stands for each of its samples.

    Raises:
        TaskError: the metric gave no tensor.
    """
    if not isinstance(values, Tensor):
        raise TaskError("task.metrics", _shape(values), "a metric must return a tensor, a scalar or a value per sample")
    return (values.expand(batch) if values.dim() == 0 else values.reshape(-1)).float()


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _check_devices(output: Any, target: Any) -> None:
    if isinstance(output, Tensor) and isinstance(target, Tensor) and output.device != target.device:
        severe("loss_device_mismatch", Severity.ERROR, outputs=str(output.device), targets=str(target.device))
        raise LossDeviceMismatch(str(output.device), str(target.device))
