"""State in what all copies of a network share: the task's functions and the globals of the user's modules."""

from __future__ import annotations

from esper.attributes import Held, different, held_by, path_in_words
from esper.errors import TaskError
from esper.own_modules import globals_of
from esper.task import Task

FUNCTIONS = ("loss", "sample_loss", "collate", "input_output", "optimizer", "scheduler", "group")
MEND = "every call changes it, and live network, forks and twin share it: keep it in the model, as a buffer"


def shared_by(task: Task) -> dict[str, Held]:
    """What the task's functions, metrics and the user's modules hold, by the name of each."""
    functions = {f"task.{name}": getattr(task, name) for name in FUNCTIONS}
    metrics = {f"task.metrics[{name!r}]": metric for name, metric in task.metrics.items()}
    held = {name: held_by(value) for name, value in {**functions, **metrics}.items() if value is not None}
    return {**held, **{f"module {name}": values for name, values in globals_of(task).items()}}


def check_shared(before: dict[str, Held], after: dict[str, Held]) -> None:
    """Compare what is shared before and after work that was done once before in the same way.

    A collection that only became longer is a log of calls, which decides nothing.

    Raises:
        TaskError: something else changed: a counter, a tensor, a source of random numbers.
    """
    for name, held in before.items():
        for path in different(held, after[name]) if name in after else ():
            if not _is_log(path, held, after[name]):
                raise TaskError(name, path_in_words(path), MEND)


def _is_log(path: str, before: Held, after: Held) -> bool:
    """The path is a collection that became longer, or lies in what was added to one."""
    if path not in before:
        return True
    return path in after and 0 <= before[path].length < after[path].length
