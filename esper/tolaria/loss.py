"""The loss of a batch, and the losses of its samples. Outputs and targets must be on one device."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import LossDeviceMismatch, TaskError
from esper.ground.nested import tensors
from esper.task import Loss, Task
from esper.telemetry.events import Severity, reported
from esper.tolaria.weighing import Weighted, by_target, target_weights
from esper.user_code.their_code import their_code

BATCH_LOSS = their_code("task.loss", "the loss of a batch")
WANTED = "task.sample_loss, (output, target) -> [B], or -> (losses [B], weights [B]) for a weighted mean"


def batch_loss(loss: Loss, output: Any, target: Any) -> Tensor:
    """Return the scalar mean loss of a batch, on the device of the outputs.

    Raises:
        LossDeviceMismatch: outputs and targets are on different devices.
        TaskError: the loss is not a scalar tensor.
    """
    _check_devices(output, target)
    value = BATCH_LOSS.run(loss, output, target)
    if not isinstance(value, Tensor) or value.dim() != 0:
        raise TaskError("task.loss", _shape(value), "it must return a scalar tensor, the mean over the batch")
    return value


def sample_loss(task: Task) -> Loss:
    """Return the function of sample losses. It is `task.sample_loss`. Without this field, it is made from `task.loss`
    by the setting `reduction`.

    The function returns losses [B], or (losses [B], weights [B]) if the weights of samples may differ; see
    `sample_losses`.

    Raises:
        TaskError: the task has no `sample_loss`, and its loss has no `reduction`, or its `reduction` is not "mean" or
            "batchmean".
    """
    if task.sample_loss is not None:
        return task.sample_loss
    unreduced = _unreduced(task.loss)
    if unreduced is None:
        name = getattr(task.loss, "__name__", type(task.loss).__name__)
        raise TaskError("task.sample_loss", None, f"the function or class {name!r} has no `reduction`; give {WANTED}")

    batchmean = _reduction(task.loss) == "batchmean"  # as in KL divergence: sum / number of samples

    def per_sample(output: Any, target: Any) -> Any:
        losses = unreduced(output, target)
        _check_not_broadcast(losses, output, target)
        weights = target_weights(task.loss, target)
        if weights is not None and weights.shape == losses.shape:
            return by_target(losses, weights)
        if losses.dim() < 2:
            return losses
        elements = losses.flatten(1)
        if batchmean:
            return elements.sum(dim=1)
        return elements.mean(dim=1), elements.new_full((len(elements),), elements.shape[1])

    return per_sample


def _check_not_broadcast(losses: Tensor, output: Any, target: Any) -> None:
    """Refuse losses that compare each sample with every target: for example [B, B] for an output [B, 1] and a target
    [B].

    Raises:
        TaskError: torch broadcasts output and target, and the losses have the resulting shape.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or losses.shape in (output.shape, target.shape):
        return
    sizes = itertools.zip_longest(reversed(output.shape), reversed(target.shape), fillvalue=1)
    broadcast = tuple(max(pair) for pair in sizes)[::-1]
    if losses.shape == broadcast:
        raise broadcast_refused(str(list(output.shape)), str(list(target.shape)))


def broadcast_refused(output: str, target: str) -> TaskError:
    """Return the error for an output and a target of different shapes. In the loss, torch would broadcast them."""
    mend = "torch broadcasts them, so samples meet the targets of others; give both the same shape"
    return TaskError("task.loss", f"output {output}, target {target}", f"{mend}, such as target.reshape(output.shape)")


def _reduction(loss: Loss) -> object:
    """Return the reduction of a torch loss. If no reduction was given, it is "mean"."""
    while isinstance(loss, functools.partial):
        if "reduction" in loss.keywords:
            return loss.keywords["reduction"]
        loss = loss.func
    return loss.reduction if isinstance(loss, nn.Module) else "mean"


def _unreduced(loss: Loss) -> Loss | None:
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction"):
            return None
        if loss.reduction not in ("mean", "batchmean"):
            raise TaskError("task.loss", f"reduction={loss.reduction!r}", "use 'mean': a loss is the mean over a batch")
        single = copy.copy(loss)
        setattr(single, "reduction", "none")  # noqa: B010  # torch types it as Tensor | Module
        return single
    try:
        parameters = inspect.signature(loss).parameters
    except ValueError:  # a builtin without a signature: whether it has `reduction` is unknown
        return None
    if "reduction" not in parameters:
        return None
    return lambda output, target: loss(output, target, reduction="none")  # type: ignore[call-arg]  # checked above


def sample_losses(measure: Loss, output: Any, target: Any, batch: int) -> Weighted:
    """Compute the loss and the weight of each sample of a batch. If `measure` returns no weights, the weights are 1.

    Args:
        measure: The result of `sample_loss`.
        batch: Number of samples, B.

    Raises:
        LossDeviceMismatch: outputs and targets are on different devices.
        TaskError: the shapes are not [B], or a weight is below 0.
    """
    _check_devices(output, target)
    with their_code("task.sample_loss", "the losses of samples"):
        found = measure(output, target)
    parts = found if isinstance(found, tuple) and len(found) == 2 else (found,)
    for part in parts:
        if not isinstance(part, Tensor) or part.shape != (batch,):
            raise TaskError("task.sample_loss", _shape(part), f"it must return one loss per sample, [{batch}]")
    weights = parts[1] if len(parts) == 2 else torch.ones_like(parts[0])
    if not (weights >= 0).all():
        raise TaskError("task.sample_loss", float(weights.min()), "a weight must be 0 or more")
    return Weighted(parts[0], weights)


def check_mean(task: Task, output: Any, target: Any, found: Weighted, batch: str) -> None:
    """Refuse a task if its loss of a batch is not the weighted mean of its sample losses.

    Otherwise a run would train on one loss, but would report and judge another loss. The tolerance is the square root
    of the dtype's precision times the mean absolute loss. The absolute values are used because losses of both signs may
    cancel.

    Args:
        found: Losses and weights of the samples.
        batch: Name of the batch, for messages.

    Raises:
        TaskError: the loss and the mean differ by more than the tolerance.
    """
    loss = batch_loss(task.loss, output, target)
    value, mean, tolerance = loss.item(), found.mean(), torch.finfo(loss.dtype).eps ** 0.5
    size = Weighted(found.losses.abs(), found.weights).mean()
    if not found.weights.any() or (not math.isfinite(value) and not math.isfinite(mean)):
        return
    if math.isclose(value, mean, rel_tol=tolerance, abs_tol=tolerance * max(size, tolerance)):
        return
    figures = f"task.loss gives {value:.6g} where the mean of its sample losses is {mean:.6g}, on {batch}"
    if task.sample_loss is None:
        raise TaskError("task.loss", figures, f"it must be a mean over samples (reduction='mean'), or give {WANTED}")
    mend = f"both must measure the same: return {WANTED}; other figures belong in task.metrics"
    raise TaskError("task.sample_loss", figures, mend)


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _check_devices(output: Any, target: Any) -> None:
    """Refuse outputs if no output is on the device of a target.

    Some outputs, such as lengths, may be on another device.
    """
    if isinstance(output, Tensor) and isinstance(target, Tensor) and output.device == target.device:
        return  # the usual case, checked first because this runs in every training step
    outputs, targets = ({str(tensor.device) for tensor in tensors(value)} for value in (output, target))
    if outputs and targets and outputs.isdisjoint(targets):
        seen, beside = ", ".join(sorted(outputs)), ", ".join(sorted(targets))
        error = LossDeviceMismatch(seen, beside)
        raise reported(error, "loss_device_mismatch", Severity.ERROR, outputs=seen, targets=beside)
