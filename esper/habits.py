"""What PyTorch users bring that cannot work here, seen in the task's fields. It calls none of the user's code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from esper.errors import TaskError
from esper.task import Task
from esper.tolaria.data import SHARD_NAMES


def check_fields(task: Task) -> None:
    """Let a task pass whose fields are of the right sort.

    Raises:
        TaskError: a field holds a made thing where a function that makes it is wanted, or another thing altogether.
    """
    for field, value, mend in _faults(task):
        raise TaskError(field, value, mend)
    if not task.slots:
        raise TaskError("task.slots", list(task.slots), "name at least one module of the model where it may grow")


def _faults(task: Task) -> Iterator[tuple[str, object, str]]:
    if isinstance(task.model, nn.Module):
        name = type(task.model).__name__
        yield "task.model", f"a {name}", f"give the function that builds it, such as `lambda: {name}(...)`"
    if isinstance(task.optimizer, torch.optim.Optimizer):
        name = type(task.optimizer).__name__
        yield "task.optimizer", f"a {name}", f"give a function, such as `lambda params: torch.optim.{name}(params)`"
    if isinstance(task.scheduler, LRScheduler):
        name = type(task.scheduler).__name__
        yield "task.scheduler", f"a {name}", "give a function of (optimizer, total_steps) that makes it"
    if isinstance(task.loss, type):
        yield "task.loss", task.loss.__name__, "give a function, or an instance of this class"
    for name in ("model", "loss", "optimizer"):
        if not callable(getattr(task, name)):
            yield f"task.{name}", getattr(task, name), "give a function; see esper.task.Task"
    for name in ("scheduler", "sample_loss", "group", "collate", "input_output"):
        value = getattr(task, name)
        if value is not None and not callable(value):
            yield f"task.{name}", value, "give a function, or leave it out; see esper.task.Task"
    for name, metric in task.metrics.items():
        if not callable(metric):
            yield f"task.metrics[{name!r}]", metric, "give a function (output, target) -> number or tensor"
    for name in SHARD_NAMES:
        if isinstance(getattr(task, name), DataLoader):
            yield f"task.{name}", "a DataLoader", "give its data set; batch_size and collate are fields of the task"
