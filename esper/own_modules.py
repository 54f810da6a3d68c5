"""Finds the user's own modules that a task's code can reach, and reads the values of their globals."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from functools import partial

from esper.attributes import Held, held_by
from esper.import_paths import file_of, is_the_users
from esper.task import Task


def globals_of(task: Task) -> dict[str, Held]:
    """What the globals of the user's modules hold that the task's functions and classes can reach, by module name.

    Reached are the modules that define them, and modules, functions and classes in the globals of a reached one.
    An object is read in depth only if its class is defined in a reached module. The task and its data are left out.
    """
    reached = _reached(task)
    kept = {id(task), *(id(getattr(task, name)) for name in ("train", "valid", "test", "pick", "gate"))}
    found = {}
    for name, module in reached.items():
        values = {key: value for key, value in vars(module).items() if _is_value(key, value, reached)}
        found[name] = held_by(values, kept, lambda value: type(value).__module__ in reached)
    return found


def _is_value(key: str, value: object, reached: dict[str, types.ModuleType]) -> bool:
    if key.startswith("__") or isinstance(value, types.ModuleType):
        return False
    return not isinstance(value, type | types.FunctionType) or value.__module__ in reached


def _reached(task: Task) -> dict[str, types.ModuleType]:
    waiting = list(_named_by(task))
    found: dict[str, types.ModuleType] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in found or module is None or (file := file_of(module)) is None or not is_the_users(file):
            continue
        found[name] = module
        for value in vars(module).values():
            if isinstance(value, types.ModuleType):
                waiting.append(value.__name__)
            elif isinstance(value, type | types.FunctionType):
                waiting.append(value.__module__)
    return found


def _named_by(task: Task) -> Iterator[str]:
    """Names of the modules that define the task's functions, classes and objects."""
    for value in (*vars(task).values(), *task.metrics.values()):
        holders = [value, type(value), *([value.func] if isinstance(value, partial) else [])]
        yield from (str(holder.__module__) for holder in holders if hasattr(holder, "__module__"))
