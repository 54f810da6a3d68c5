"""The optimizers of one host: the task's own for the host, and one of its own for each seed.

A seed gets a separate optimizer of the task's kind, so that the host's moments and its scheduler never notice that
the network grew, and a culled seed takes its state with it (docs/adr/0003-one-optimizer-per-seed.md).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from esper.errors import TaskError
from esper.task import Task
from esper.user_code.their_code import their_code

FLOOR = 0.1
"""Share of the peak rate that a seed's schedule ends with."""


def seed_rate(step: int, start: int, total: int, warmup: int) -> float:
    """A seed's learning rate at an optimizer step of the run, as a share of its peak.

    Linear warm-up over `warmup` steps from `start`, cosine from there to `FLOOR` at the run's end.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 (cosine); a restart per seed: docs/growth.md.
    """
    age = step - start
    rise = min(1.0, max(0, age + 1) / warmup)  # 0 before the start, as alpha is
    course = age / max(1, total - start)
    return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * course)))


def peak_share(task: Task, total_steps: int, parameters: Sequence[nn.Parameter]) -> float:
    """The highest learning rate that the task's scheduler reaches, over the one that its optimizer is made with.

    A scheduler may give the rate its meaning: an optimizer made with 1.0 under a factor that never passes 0.002, or
    one whose rate is to rise 25-fold. A seed's own peak follows it.

    Args:
        parameters: The host's; the optimizer is made over stand-ins for them.

    Raises:
        TaskError: see `build_optimizer` and `build_scheduler`.
    """
    optimizer = build_optimizer(task, stand_ins(parameters))
    made_with = float(optimizer.param_groups[0]["lr"])
    scheduler = build_scheduler(task, optimizer, total_steps)
    if scheduler is None:
        return 1.0
    highest = float(optimizer.param_groups[0]["lr"])
    optimizer.step()  # torch warns of a scheduler that steps first; there are no gradients
    for _ in range(total_steps - 1):
        with their_code("task.scheduler", "scheduler.step"):
            scheduler.step()
        highest = max(highest, float(optimizer.param_groups[0]["lr"]))
    return highest / made_with


def reschedule(
    task: Task, parameters: Sequence[nn.Parameter], optimizer: Optimizer, scheduler: LRScheduler, step: int, total: int
) -> None:
    """Bring an optimizer's rates and its scheduler to where the schedule of a run of `total` steps is at `step`.

    A schedule may have its length in its state, so that it cannot be stretched: a fresh one is led up to here.

    Args:
        parameters: What the optimizer was made over. None has a gradient.
    """
    fresh = build_optimizer(task, parameters)
    course = build_scheduler(task, fresh, total)
    assert course is not None, "the task has no schedule"
    for _ in range(step):
        fresh.step()  # without gradients it moves nothing
        course.step()
    scheduler.load_state_dict(course.state_dict())
    for group, there in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.update({name: value for name, value in there.items() if name != "params"})


class SeedOptimizer:
    """The optimizer of one seed with its own warm-up and cosine."""

    def __init__(
        self,
        task: Task,
        parameters: Sequence[nn.Parameter],
        start: int,
        total: int,
        warmup: int,
        peak: float = 1.0,
    ) -> None:
        self.optimizer = build_optimizer(task, parameters)
        self._peaks = [peak * float(group["lr"]) for group in self.optimizer.param_groups]
        self.start, self._total, self._warmup = start, total, warmup

    def step(self, step: int) -> None:
        """One update at optimizer step `step` of the run."""
        share = seed_rate(step, self.start, self._total, self._warmup)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        self.optimizer.step()


def build_optimizer(task: Task, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The task's optimizer over some parameters.

    Raises:
        TaskError: the factory gave something else, or one that steps in another way.
    """
    if not parameters:
        raise TaskError("task.model", "no trainable parameter", "leave requires_grad on for what shall be trained")
    with their_code("task.optimizer", "the optimizer factory"):
        optimizer = task.optimizer(list(parameters))
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TaskError("task.optimizer", name, "it must return a torch.optim.Optimizer")
    asked = [one for one in inspect.signature(optimizer.step).parameters.values() if one.default is one.empty]
    wanted = [one.name for one in asked if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if wanted:
        mend = f"its step cannot be called without {wanted[0]!r}; take an optimizer that needs gradients alone"
        raise TaskError("task.optimizer", name, mend)
    given = {id(parameter) for parameter in parameters}
    if not given.issuperset(id(one) for group in optimizer.param_groups for one in group["params"]):
        mend = "it holds parameters that it was not given; make it over those that the function is called with"
        raise TaskError("task.optimizer", name, mend)
    if any("lr" not in group for group in optimizer.param_groups):
        raise TaskError("task.optimizer", name, "each of its groups needs a learning rate under 'lr'")
    return optimizer


def build_scheduler(task: Task, optimizer: Optimizer, total_steps: int) -> LRScheduler | None:
    """The task's scheduler of an optimizer, for a run of so many steps; None: it has none.

    Raises:
        TaskError: the factory gave something else, or one that steps on something other than optimizer steps.
    """
    if task.scheduler is None:
        return None
    with their_code("task.scheduler", "the scheduler factory"):
        scheduler = task.scheduler(optimizer, total_steps)
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise TaskError("task.scheduler", type(scheduler).__name__, "give a torch scheduler that steps once a step")
    return scheduler


def stand_ins(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Copies for an optimizer that is tried out: some take only parameters of certain shapes."""
    return [nn.Parameter(parameter.detach().clone()) for parameter in parameters]


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, a scalar on the first one's device.

    For gradients of one type it is to the bit `torch.nn.utils.get_total_norm`, whose grouping by device and type
    costs a small host 2 % of its step.
    """
    norms = torch._foreach_norm(gradients)
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return total
