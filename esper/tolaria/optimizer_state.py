"""Whether the state of an optimizer, as it was kept, is one that this optimizer could have left. It loads nothing."""

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
"""By number of a parameter and name of a value: the type of the value; of a tensor its shape and dtype."""


def check_groups(optimizer: Optimizer, kept: dict[str, Any]) -> None:
    """Compare the groups of a kept state with those of the optimizer that is to load it.

    `load_state_dict` compares their number and sizes only: it takes a permutation of the parameters, a group without
    its hyperparameters, and a learning rate that is text.

    Raises:
        DependencyViolationError: the parameters of a group, or the name or type of a hyperparameter, are others.
    """
    live = state_of("task.optimizer", optimizer).get("param_groups")
    if live is None:
        return  # an optimizer of the user's own that keeps them elsewhere
    groups = kept.get("param_groups")
    if type(groups) is not list or len(groups) != len(live) or not all(type(group) is dict for group in groups):
        raise _refused(optimizer, f"param_groups are not {len(live)} groups")
    for number, (group, own) in enumerate(zip(groups, live, strict=True)):
        if group.get("params") != own.get("params"):
            raise _refused(optimizer, f"group {number} has the parameters {group.get('params')}")
        for name in optimizer.defaults.keys() & own.keys():  # Adafactor has a default that no group of it keeps
            if name not in group or not _alike(group[name], own[name]):
                raise _refused(optimizer, f"group {number} has {name} = {group.get(name)!r}, here {own.get(name)!r}")


def _alike(kept: Any, live: Any) -> bool:  # Any: a hyperparameter
    """The values are of one kind; a number that is not finite stands only beside another."""
    if live is None or kept is None:
        return live is None
    if isinstance(live, Tensor):
        return isinstance(kept, Tensor) and kind_of(kept) == kind_of(live)
    if type(live) in (int, float):
        return type(kept) in (int, float) and (math.isfinite(kept) or not math.isfinite(live))
    if type(live) in (list, tuple):
        return type(kept) is type(live) and len(kept) == len(live) and all(map(_alike, kept, live))
    return type(kept) is type(live)


def check_steps(optimizer: Optimizer, updates: int, *, stepped: bool) -> None:
    """Have an optimizer take a step on gradients of ones, and compare the kinds of its state before and after it.

    A step of torch's own optimizers changes no kind. Optimizers of others may: for them the step itself is the check.

    Args:
        updates: Times that it was called to step. A parameter without a gradient was left out; its count may be 0.
        stepped: It has changed a parameter, so that a state was begun.

    Raises:
        DependencyViolationError: the step changed a kind, or begins a state where an earlier step would have.
        Exception: what the step raised.
    """
    if not is_torchs(optimizer):
        _step(optimizer)
        return
    before = _kinds(optimizer)
    taken = [float(state["step"]) for state in optimizer.state.values() if "step" in state]
    _step(optimizer)
    after = _kinds(optimizer)
    if stepped and after and not before:
        raise _refused(optimizer, "there is none, and it has taken a step")
    for number, kinds in before.items():
        if kinds != after.get(number):
            raise _refused(optimizer, f"that of parameter {number} holds {kinds}, and {after.get(number)} after a step")
    if any(not 0 <= steps <= updates for steps in taken):
        raise _refused(optimizer, f"it counts other than 0 to {updates} steps")


def _step(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    with their_code("task.optimizer", "optimizer.step"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def is_torchs(part: object) -> bool:
    """An optimizer or scheduler is of a class of torch's own, whose ways are known."""
    return type(part).__module__.startswith("torch.optim.")


def _kinds(optimizer: Optimizer) -> Kinds:
    states = state_of("task.optimizer", optimizer)["state"]
    return {
        number: {name: kind_of(v) if isinstance(v, Tensor) else type(v) for name, v in state.items()}
        for number, state in states.items()
    }


def _refused(optimizer: Optimizer, detail: str) -> DependencyViolationError:
    return DependencyViolationError(
        "snapshot", "an optimizer's state is none of its own", f"{type(optimizer).__name__}: {detail}"
    )
