"""Finds the user's modules that a task's code can reach, and reads their globals."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from functools import partial

from esper.task import Task
from esper.user_code.attributes import Held, held_by
from esper.user_code.import_paths import file_of, is_the_users

Modules = dict[str, types.ModuleType]


def globals_of(task: Task, reached: Modules) -> dict[str, Held]:
    """Return the digests of the globals of the user's modules, by module name.

    The attributes of an object are read only if its class is defined in one of the modules. The task and its data sets
    are left out.

    Args:
        reached: See `reached_by`.
    """
    unread = data_of(task) | {id(task)}
    found = {}
    for name, module in reached.items():
        values = {key: value for key, value in vars(module).items() if _is_value(key, value, reached)}
        found[name] = held_by(values, unread, lambda value: type(value).__module__ in reached)
    return found


def data_of(task: Task) -> set[int]:
    """Return the ids of the task's data sets."""
    return {id(getattr(task, name)) for name in ("train", "valid", "test", "pick", "gate")}


def is_users_class(kind: type) -> bool:
    """Return whether a class is defined in a file of the user."""
    module = sys.modules.get(kind.__module__)
    file = file_of(module) if module is not None else None
    return file is not None and is_the_users(file)


def _is_value(key: str, value: object, reached: Modules) -> bool:
    if key.startswith("__") or isinstance(value, types.ModuleType):
        return False
    return not isinstance(value, type | types.FunctionType) or value.__module__ in reached


def reached_by(task: Task) -> Modules:
    """Return the user's modules that the task's functions and classes can reach, by name.

    These are the modules that define the task's functions and classes. Further modules are reached from each of them:
    the modules in its globals, and the modules that define the functions and classes in its globals.
    """
    waiting = list(_named_by(task))
    found: Modules = {}
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
    """Yield the names of the modules that define the task's functions, classes and objects."""
    for value in (*vars(task).values(), *task.metrics.values()):
        holders = [value, type(value), *([value.func] if isinstance(value, partial) else [])]
        yield from (str(holder.__module__) for holder in holders if hasattr(holder, "__module__"))
