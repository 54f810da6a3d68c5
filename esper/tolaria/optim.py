"""The optimizers and schedulers of one host: an optimizer for the host, and a separate optimizer for each seed.

The task's factory makes all these optimizers. Because they are separate, growth changes nothing in the host's optimizer
and scheduler, and the optimizer of a culled seed is deleted with the seed (docs/adr/0003-one-optimizer-per-seed.md).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from esper.errors import TaskError
from esper.task import Task
from esper.user_code.their_code import their_code

FLOOR = 0.1
"""Final learning rate of a seed's schedule, as a share of its peak."""


def seed_rate(step: int, start: int, total: int, warmup: int) -> float:
    """Return a seed's learning rate at optimizer step `step` of the run, as a share of its peak.

    It is the product of a linear warm-up over `warmup` steps from `start` and a cosine from 1 at `start` to `FLOOR` at
    the run's last step.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 (cosine). docs/growth.md explains the new start for each
        seed.
    """
    age = step - start
    rise = min(1.0, max(0, age + 1) / warmup)  # the rate is 0 before the start, like alpha
    course = age / max(1, total - start)
    return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * course)))


@dataclass(frozen=True)
class Rates:
    """The learning rates of a task's optimizer over a run."""

    made_with: float
    """The rate that the optimizer's factory set."""
    steps: tuple[float, ...]
    """The rate of each optimizer step. One value if the task has no scheduler."""

    @property
    def peak_share(self) -> float:
        """Highest rate, divided by the rate that the optimizer's factory set.

        For example, a scheduler may multiply a rate of 1.0 by at most 0.002, or raise a small rate to 25 times its
        value. The peak learning rate of a seed is scaled by the same share.
        """
        return max(self.steps) / self.made_with if len(self.steps) > 1 else 1.0

    @property
    def warmup_steps(self) -> int:
        """Step at which the first rise of the rate ends: the first step with the highest rate before the rate falls. 0
        if the rate does not rise at the beginning.
        """
        end = 0
        for step, (before, after) in enumerate(pairwise(self.steps), start=1):
            if after < before:
                break
            end = step if after > before else end
        return end


def rates_of(task: Task, total_steps: int, parameters: Sequence[nn.Parameter]) -> Rates:
    """Return the learning rates of the optimizer's first parameter group over a run.

    Args:
        parameters: The host's parameters. The optimizer gets copies.

    Raises:
        TaskError: see `build_optimizer` and `build_scheduler`.
    """
    optimizer = build_optimizer(task, stand_ins(parameters))
    made_with = float(optimizer.param_groups[0]["lr"])
    scheduler = build_scheduler(task, optimizer, total_steps)
    if scheduler is None:
        return Rates(made_with, (made_with,))
    rates = [float(optimizer.param_groups[0]["lr"])]
    optimizer.step()  # torch warns if the scheduler steps first; without gradients this step changes nothing
    for _ in range(total_steps - 1):
        with their_code("task.scheduler", "scheduler.step"):
            scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return Rates(made_with, tuple(rates))


def reschedule(
    task: Task, parameters: Sequence[nn.Parameter], optimizer: Optimizer, scheduler: LRScheduler, step: int, total: int
) -> None:
    """Set an optimizer and its scheduler to step `step` of the schedule for a run of `total` steps.

    A scheduler's state may contain the length of its schedule, so it cannot be loaded into a schedule of another
    length. Instead, a new scheduler takes `step` steps, and its state is copied.

    Args:
        parameters: Parameters of the optimizer, without gradients.
    """
    fresh = build_optimizer(task, parameters)
    course = build_scheduler(task, fresh, total)
    assert course is not None, "the task has no schedule"
    for _ in range(step):
        fresh.step()  # without gradients this changes no parameter
        course.step()
    scheduler.load_state_dict(course.state_dict())
    for group, there in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.update({name: value for name, value in there.items() if name != "params"})


class SeedOptimizer:
    """The optimizer of one seed, with the seed's warm-up and cosine schedule; see `seed_rate`.

    `peak` multiplies the rates that the task's factory sets; see `Rates`.
    """

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
        self.scale = 1.0
        """Factor that multiplies the rates of the schedule; see `Operation.SCALE_RATE`."""

    def step(self, step: int) -> None:
        """Set the learning rates for optimizer step `step` of the run and update the seed's parameters."""
        share = seed_rate(step, self.start, self._total, self._warmup)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share * self.scale
        self.optimizer.step()


def build_optimizer(task: Task, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """Make the task's optimizer over some parameters.

    Raises:
        TaskError: there is no parameter; the factory did not return an optimizer; the optimizer's `step` needs
            arguments; the optimizer has other parameters; or a group has no learning rate.
    """
    if not parameters:
        raise TaskError("task.model", "no trainable parameter", "leave requires_grad on for the parameters to train")
    with their_code("task.optimizer", "the optimizer factory"):
        optimizer = task.optimizer(list(parameters))
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TaskError("task.optimizer", name, "it must return a torch.optim.Optimizer")
    asked = [one for one in inspect.signature(optimizer.step).parameters.values() if one.default is one.empty]
    wanted = [one.name for one in asked if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if wanted:
        mend = f"its step cannot be called without {wanted[0]!r}; use an optimizer that needs only gradients"
        raise TaskError("task.optimizer", name, mend)
    given = {id(parameter) for parameter in parameters}
    if not given.issuperset(id(one) for group in optimizer.param_groups for one in group["params"]):
        mend = "it has parameters that it was not given; make it of the parameters in the function's argument"
        raise TaskError("task.optimizer", name, mend)
    if any("lr" not in group for group in optimizer.param_groups):
        raise TaskError("task.optimizer", name, "each of its groups needs a learning rate under 'lr'")
    return optimizer


def build_scheduler(task: Task, optimizer: Optimizer, total_steps: int) -> LRScheduler | None:
    """Make the task's scheduler for an optimizer and a run of `total_steps` steps. None: the task has no scheduler.

    Raises:
        TaskError: the factory did not return a torch scheduler, or returned a `ReduceLROnPlateau`. That scheduler needs
            a measured value for each step.
    """
    if task.scheduler is None:
        return None
    with their_code("task.scheduler", f"the scheduler factory, called with (optimizer, {total_steps})"):
        scheduler = task.scheduler(optimizer, total_steps)
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise TaskError("task.scheduler", type(scheduler).__name__, "give a torch scheduler that steps once a step")
    return scheduler


def stand_ins(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return copies of parameters, to try an optimizer.

    The shapes are equal, because some optimizers refuse certain shapes. The attributes are equal, because a factory may
    put parameters into groups by them.
    """
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for copied, parameter in zip(copies, parameters, strict=True):
        vars(copied).update(vars(parameter))
    return copies
