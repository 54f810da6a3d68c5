"""Checks whether an optimizer could have produced a stored state."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.errors import DependencyViolationError
from esper.tolaria.trees import kind_of
from esper.user_code.extra_state import state_of
from esper.user_code.their_code import their_code

Kinds = dict[Any, dict[str, object]]
"""Index of a parameter -> name of a value -> type of the value. For a tensor, shape and dtype are used instead of the
type."""


def check_groups(optimizer: Optimizer, stored: dict[str, Any]) -> None:
    """Compare the groups of a stored state with the groups of the optimizer that will load the state.

    torch's `load_state_dict` compares only the number and sizes of the groups. So it accepts permuted parameters, a
    group without hyperparameters, and a learning rate that is text.

    Raises:
        DependencyViolationError: a group has other parameters, or a hyperparameter is missing or has another type.
    """
    live = state_of("task.optimizer", optimizer).get("param_groups")
    if live is None:
        return  # the user's optimizer may store its groups under another name
    groups = stored.get("param_groups")
    if type(groups) is not list or len(groups) != len(live) or not all(type(group) is dict for group in groups):
        raise _refused(optimizer, f"param_groups are not {len(live)} groups")
    for number, (group, own) in enumerate(zip(groups, live, strict=True)):
        if group.get("params") != own.get("params"):
            raise _refused(optimizer, f"group {number} has the parameters {group.get('params')}")
        for name in optimizer.defaults.keys() & own.keys():  # a group of Adafactor lacks one of the defaults
            if name not in group or not _alike(group[name], own[name]):
                raise _refused(optimizer, f"group {number} has {name} = {group.get(name)!r}, here {own.get(name)!r}")


def _alike(stored: Any, live: Any) -> bool:  # Any: a hyperparameter
    """Return whether two hyperparameters have the same type. `stored` may be infinite or NaN only if `live` is, too."""
    if live is None or stored is None:
        return live is None
    if isinstance(live, Tensor):
        return isinstance(stored, Tensor) and kind_of(stored) == kind_of(live)
    if type(live) in (int, float):
        return type(stored) in (int, float) and (math.isfinite(stored) or not math.isfinite(live))
    if type(live) in (list, tuple):
        return type(stored) is type(live) and len(stored) == len(live) and all(map(_alike, stored, live))
    return type(stored) is type(live)


def check_steps(optimizer: Optimizer, updates: int, *, stepped: bool) -> None:
    """Take one step with gradients of 1, and compare the types and shapes of the state before and after the step.

    A step of an optimizer from torch.optim never changes types or shapes. Other optimizers may change them, so for
    other optimizers only an error of the step is found.

    Args:
        updates: Number of calls of `step` so far. A parameter's step count is lower if some calls had no gradient for
            it.
        stepped: True if a step has changed a parameter. In that case the optimizer must have a state.

    Raises:
        DependencyViolationError: a type or shape changed, a step count is not in 0 to `updates`, or `stepped` is True
            and the step created the first state.
        Exception: the error of the step.
    """
    if not is_torchs(optimizer):
        _step(optimizer)
        return
    before = _kinds(optimizer)
    taken = [float(state["step"]) for state in optimizer.state.values() if "step" in state]
    _step(optimizer)
    after = _kinds(optimizer)
    if stepped and after and not before:
        raise _refused(optimizer, "it is empty, although a step was taken")
    for number, kinds in before.items():
        if kinds != after.get(number):
            raise _refused(optimizer, f"parameter {number} has {kinds}, and {after.get(number)} after a step")
    if any(not 0 <= steps <= updates for steps in taken):
        raise _refused(optimizer, f"its step count is not in 0 to {updates}")


def _step(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    with their_code("task.optimizer", "optimizer.step"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def is_torchs(part: object) -> bool:
    """Return whether the class of an optimizer or scheduler is from torch.optim."""
    return type(part).__module__.startswith("torch.optim.")


def _kinds(optimizer: Optimizer) -> Kinds:
    states = state_of("task.optimizer", optimizer)["state"]
    return {
        number: {name: kind_of(v) if isinstance(v, Tensor) else type(v) for name, v in state.items()}
        for number, state in states.items()
    }


def _refused(optimizer: Optimizer, detail: str) -> DependencyViolationError:
    return DependencyViolationError(
        "snapshot",
        "a stored optimizer state does not belong to this optimizer",
        f"{type(optimizer).__name__}: {detail}",
    )
