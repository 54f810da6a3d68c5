"""From `module:attribute` or `path/to/file.py:attribute` to a task. It imports what it is told to and nothing else."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from esper.errors import TaskError
from esper.task import Task
from esper.their_code import refused_as_theirs, their_code


@dataclass(frozen=True)
class Reference:
    """Where a task comes from. An empty text: it was built in place and cannot be found again from here."""

    text: str = ""
    file: Path | None = None


def load_task(text: str) -> tuple[Task, Reference]:
    """The task that a reference names: a `Task`, or what a function without arguments returns.

    Raises:
        TaskError: the module, file or attribute is not there, is no task, or raised; nothing was written.
    """
    place, mark, attribute = text.rpartition(":")
    if not mark or not place or not attribute:
        raise TaskError("TASK", text, "use module:attribute or path/to/file.py:attribute")
    with refused_as_theirs(), their_code("TASK", text):
        module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    if not hasattr(module, attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        near = difflib.get_close_matches(attribute, names, n=1, cutoff=0.0)
        raise TaskError(
            "TASK", text, f"{place} has no {attribute!r}" + (f"; the nearest is {near[0]!r}" if near else "")
        )
    found = getattr(module, attribute)
    task = found if isinstance(found, Task) else _called(found, text)
    file = getattr(module, "__file__", None)  # a module that is built in has none
    return task, Reference(text, Path(file) if file is not None else None)


def _called(found: object, text: str) -> Task:
    if not callable(found):
        raise TaskError(
            "TASK", text, f"it is of type {type(found).__name__}; name a Task, or a function that returns one"
        )
    with refused_as_theirs(), their_code("TASK", text):
        task = found()
    if not isinstance(task, Task):
        raise TaskError("TASK", text, f"it returned {type(task).__name__}, no Task")
    return task


def _from_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TaskError("TASK", name, "no module has such a name; the path of a file ends in .py")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(missing + "."):
            raise  # the task's module is there; something that it imports is not, and its own error says so
        raise TaskError("TASK", name, f"there is no module {missing!r} on the import path") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError("TASK", str(path), "there is no such file")
    name = f"esper_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that what the file defines can be found by its module's name
    spec.loader.exec_module(module)
    return module
