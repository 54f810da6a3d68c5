"""Finds state that all networks share: in the task's functions, and in the globals of the user's modules."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from esper.errors import TaskError
from esper.task import Task
from esper.user_code.attributes import Held, different, held_by, path_in_words
from esper.user_code.import_paths import TASK_FILE
from esper.user_code.mends import shared_mend_of
from esper.user_code.own_modules import Modules, data_of, globals_of, is_users_class, reached_by

FUNCTIONS = ("loss", "sample_loss", "collate", "input_output", "optimizer", "scheduler", "group")
WHY = "every call changes it, and the live network, the forks and the twin share it"


def shared_by(task: Task, kinds: Iterable[type] = (), modules: Modules | None = None) -> dict[str, Held]:
    """Return the digests of the task's functions, metrics and classes, and of the user's modules, by name.

    Args:
        kinds: Classes of the user's objects (see `kinds_of`). They include classes that are defined in a function,
            because these are in no module's globals.
        modules: The result of `reached_by`. None: it is computed here.
    """
    modules = reached_by(task) if modules is None else modules
    functions = {f"task.{name}": getattr(task, name) for name in FUNCTIONS}
    metrics = {f"task.metrics[{name!r}]": metric for name, metric in task.metrics.items()}
    held = {name: held_by(value) for name, value in {**functions, **metrics}.items() if value is not None}
    data = data_of(task)
    local = [kind for kind in kinds if not _is_global(kind, modules)]
    classes = {f"class {kind.__qualname__}": held_by(kind, data) for kind in local}
    found = globals_of(task, modules)
    return {**held, **classes, **{_in_words(name): values for name, values in found.items()}}


def _in_words(module: str) -> str:
    """Return the name of a module for messages. For a task's file, return the file name."""
    return f"{module.removeprefix(TASK_FILE)}.py" if module.startswith(TASK_FILE) else f"module {module}"


def _is_global(kind: type, modules: Modules) -> bool:
    module = modules.get(kind.__module__)
    return module is not None and vars(module).get(kind.__name__) is kind


def kinds_of(*parts: object) -> list[type]:
    """Return the classes and base classes of some objects and of their submodules, but only those that the user
    defined.
    """
    objects = [one for part in parts for one in (part.modules() if isinstance(part, nn.Module) else [part])]
    kinds = {kind: None for one in objects for kind in type(one).__mro__}
    return [kind for kind in kinds if is_users_class(kind)]


def check_shared(before: dict[str, Held], after: dict[str, Held]) -> None:
    """Compare the shared state before and after a repetition of the same work.

    A collection that only became longer counts as a log of calls. A log has no effect on training. A deque that has
    reached its `maxlen` counts as a log, too.

    Raises:
        TaskError: a value outside logs has changed, for example a counter, a tensor or a source of random numbers.
    """
    for name, held in before.items():
        for path in different(held, after[name]) if name in after else ():
            if not _is_log(path, held, after[name]):
                raise TaskError(name, path_in_words(path), f"{WHY}: {shared_mend_of(path, after[name])}")


def _is_log(path: str, before: Held, after: Held) -> bool:
    """Return whether a path is a collection that became longer, a new item of a collection, or a full deque."""
    if path not in before:
        return True
    if path not in after:
        return False
    return 0 <= before[path].length < after[path].length or after[path].kind == "full deque"
