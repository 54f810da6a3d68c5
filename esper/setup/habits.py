"""Checks the types of a task's fields, and gives advice for common PyTorch mistakes. It calls no code of the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from esper.errors import TaskError
from esper.task import Task
from esper.tolaria.data import SHARD_NAMES


def check_fields(task: Task) -> None:
    """Check that every field of a task has a value of the required type.

    Raises:
        TaskError: `task` is not a Task, or a field has a value of a wrong type. An example is a module in place of a
            function that builds the module.
    """
    if not isinstance(task, Task):
        raise TaskError(
            "task", type(task).__name__, "give an esper.Task; where a function returns it, call that function"
        )
    for field, value, mend in _faults(task):
        raise TaskError(field, value, mend)
    if not task.slots:
        raise TaskError("task.slots", list(task.slots), "name at least one module of the model where it may grow")
    for slot, times in Counter(task.slots).items():
        if times > 1:
            raise TaskError("task.slots", slot, f"it is given {times} times; give each path or pattern once")


def _is_count(value: object) -> bool:
    return type(value) is int


def _is_data_set(value: object) -> bool:
    if isinstance(value, str | bytes) or not hasattr(type(value), "__len__"):
        return False
    return hasattr(type(value), "__getitem__") or hasattr(value, "__getitems__")


def _is_paths(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    return all(isinstance(path, str) for path in value)


def _is_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


_FUNCTION = callable, "give a function; see esper.task.Task"
_DATA_SET = _is_data_set, "use a map-style data set, with len(data) and data[i]; iterable data sets cannot be replayed"
_COUNT = _is_count, "give a whole number, an int"

WANTED: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(("model", "loss", "optimizer"), _FUNCTION),
    **dict.fromkeys(("scheduler", "sample_loss", "group", "collate", "input_output"), _FUNCTION),
    **dict.fromkeys(SHARD_NAMES, _DATA_SET),
    **dict.fromkeys(("batch_size", "epochs", "epoch_samples", "round_steps"), _COUNT),
    "slots": (_is_paths, 'give a list of paths of modules, such as ["blocks.0"]'),
    "metrics": (_is_names, "give a dict: name -> function (output, target) -> number or tensor; {} for none"),
}
"""The check and the advice for each field of a task. A field with the default None may also be None."""


def _faults(task: Task) -> Iterator[tuple[str, object, str]]:
    yield from _made(task)
    for field in fields(task):
        value, (fits, mend) = getattr(task, field.name), WANTED[field.name]
        if value is None and field.default is None:
            continue
        if not fits(value):
            shown = type(value).__name__ if field.name in SHARD_NAMES and value is not None else value
            yield f"task.{field.name}", shown, f"{mend}, or leave it out" if field.default is None else mend
    for name, metric in task.metrics.items():
        if name == "loss":
            yield "task.metrics", name, "the figure of this name is the task's own loss; give the metric another name"
        if not callable(metric):
            yield f"task.metrics[{name!r}]", metric, "give a function (output, target) -> number or tensor"


def _made(task: Task) -> Iterator[tuple[str, object, str]]:
    """Yield the fields that have an object in place of a function that makes it, or a class in place of an instance of
    the class.
    """
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
    for name in SHARD_NAMES:
        if isinstance(getattr(task, name), DataLoader):
            yield f"task.{name}", "a DataLoader", "give its data set; batch_size and collate are fields of the task"
