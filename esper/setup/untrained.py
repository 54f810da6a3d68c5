"""Finds parameters that the loss depends on but no optimizer trains. It changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from esper.errors import TaskError
from esper.task import Task

REENTRANT = "None of the inputs have requires_grad=True"
"""Warning of torch that torch.utils.checkpoint with use_reentrant=True cuts off the gradients."""


def check_parts(task: Task, model: nn.Module, loss: Tensor) -> None:
    """Check that the loss depends on no trainable parameter outside the model.

    Args:
        loss: Loss of one batch, with its graph.

    Raises:
        TaskError: the loss depends on a parameter of `task.loss`, or of an object that the model does not register.
    """
    own = {id(parameter) for parameter in model.parameters()}
    foreign = [parameter for parameter in _reached(loss) if id(parameter) not in own]
    if not foreign:
        return
    mend = "put it into the model, since only the model is trained and saved, or freeze it with requires_grad_(False)"
    if isinstance(task.loss, nn.Module):
        for name, parameter in task.loss.named_parameters():
            if any(parameter is one for one in foreign):
                raise TaskError("task.loss", name, f"a parameter of the loss is never trained: {mend}")
    value = f"a parameter of shape {tuple(foreign[0].shape)}"
    raise TaskError("task.model", value, f"the loss depends on it and model.parameters() does not have it: {mend}")


def _reached(loss: Tensor) -> list[nn.Parameter]:
    """Return the parameters to which a backward pass from `loss` would give gradients."""
    found: list[nn.Parameter] = []
    seen: set[Any] = set()  # Any: torch does not type its graph nodes
    left: list[Any] = [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable") and isinstance(node.variable, nn.Parameter):
            found.append(node.variable)
        left += [following for following, _ in node.next_functions]
    return found


@contextmanager
def refuse_reentrant() -> Iterator[None]:
    """Return a context for a forward pass of a model whose loss has no gradient.

    Raises:
        TaskError: torch warned that a reentrant checkpoint cuts the gradients off.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    if any(REENTRANT in str(one.message) for one in said):
        mend = "it passes on no gradient if its input requires none; call it with use_reentrant=False"
        raise TaskError("task.model", "torch.utils.checkpoint with use_reentrant=True", mend)
