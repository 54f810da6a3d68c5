"""Loads the task that `module:attribute` or `path/to/file.py:attribute` names.

`locate` finds the file without an import, so that a resumed run can compare the digest of the file first.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType, ModuleType

from esper.errors import ConfigError, TaskError
from esper.ground.suggest import existing_names
from esper.ground.workplace import workplace
from esper.leyline.base import is_utf8
from esper.task import Task
from esper.user_code.import_paths import (
    TASK_FILE,
    find_module,
    hidden_in,
    hidden_module,
    is_installed,
    is_ours,
    module_name,
    modules_in,
    put_first,
)
from esper.user_code.their_code import refused_as_theirs, their_code

_brought: dict[str, ModuleType] = {}
"""Modules that this process loaded with its last task."""


@dataclass(frozen=True)
class Reference:
    """The source of a task. The text is empty if the task was built in Python, so that no reference can load it."""

    text: str = ""
    file: Path | None = None
    """Absolute path of the task's file. None: there is no file, or only an import can find it."""
    folder: Path | None = None
    """Folder of the task. All modules in this folder or below it belong to the task. None: the module of the task is
    the only module that belongs to the task."""
    goes_first: bool = False
    """True if the folder is put at the front of the import path."""

    def modules(self) -> dict[str, Path]:
        """Return name and file of each loaded module in the folder of the task."""
        return modules_in(self.folder) if self.folder is not None else {}


def load_task(text: str) -> tuple[Task, Reference]:
    """Load the task that a reference names.

    The reference names a `Task`, or a function without arguments that returns a `Task`.

    Raises:
        TaskError: the module, file or attribute does not exist, is not a task, or its code raised. Nothing was written.
    """
    return import_task(locate(text))


def given_task(task: Task | str) -> tuple[Task, Reference]:
    """Return a task that a caller gave, or that the reference of a caller names.

    Raises:
        TaskError: it is neither a task nor a reference, or see `load_task`.
    """
    if isinstance(task, str):
        return load_task(task)
    if not isinstance(task, Task):
        mend = "give an esper.Task, or its reference as a text; where a function returns it, call that function"
        raise TaskError("task", type(task).__name__, mend)
    return task, Reference()


_referring: set[str] = set()
"""References that `check_reference` is loading now."""


def check_reference(text: str, task: Task) -> Reference:
    """Load the task that a text names, and compare it with a task of the caller.

    Returns:
        The reference.

    Raises:
        ConfigError: the text names a task with other slots, data or settings than the caller's, or its file calls
            esper while it is imported. The error is a TaskError if the text names no task.
    """
    if text in _referring:
        mend = 'its file calls esper when it is imported; put that call below `if __name__ == "__main__":`'
        raise ConfigError("reference", text, mend)
    _referring.add(text)
    try:
        found, reference = load_task(text)
    finally:
        _referring.discard(text)
    given, named = _settings(task), _settings(found)
    other = [name for name in given if given[name] != named[name]]
    if other:
        how = f"{other[0]} is {named[other[0]]!r} there, and {given[other[0]]!r} in `task`"
        raise ConfigError("reference", text, f"it names another task: {how}; give the reference of this task")
    return reference


def _settings(task: Task) -> dict[str, object]:
    """Return the settings of a task that two builds of it have in common: plain values, and the sizes of data sets."""
    plain = ("batch_size", "epochs", "epoch_samples", "round_steps")
    data = {name: getattr(task, name) for name in ("train", "valid", "test", "pick", "gate")}
    return {
        "slots": list(task.slots),
        "metrics": sorted(task.metrics),
        **{name: getattr(task, name) for name in plain},
        **{f"len({name})": None if one is None else len(one) for name, one in data.items()},
    }


def locate(text: str, started_in: str = "") -> Reference:
    """Find the file and the folder of a task without running its code.

    Modules that an earlier task of this process loaded are removed from `sys.modules`, so that they are imported again.
    Their files may have changed, or other folders may have modules of the same names.

    Args:
        started_in: Folder that is searched before the working directory.

    Returns:
        The reference. Its `file` is None if only an import can find the module.

    Raises:
        TaskError: the text is not a reference, or the file does not exist.
    """
    _forget_brought()
    importlib.invalidate_caches()  # the import finders cache the files of a folder until its time stamp changes
    place, attribute = _parts(text)
    try:
        here = workplace()
        if not is_utf8(str(here)):
            raise TaskError(
                "TASK", text, f"run.json could not hold the name of this folder, which is not UTF-8: {here!r}"
            )
        bases = [*([Path(started_in)] if started_in else []), here]
        if place.endswith(".py"):
            return _locate_file(text, place, bases)
        found = (_locate_module(text, place, attribute, base) for base in bases)
        return next((reference for reference in found if reference.file is not None), Reference(text))
    except OSError as error:
        raise TaskError("TASK", text, f"the search for it failed: {error.strerror} ({error.filename})") from error


def _parts(text: str) -> tuple[str, str]:
    place, mark, attribute = text.rpartition(":")
    if not mark or not place or not attribute:
        raise TaskError("TASK", text, "use module:attribute or path/to/file.py:attribute")
    if not is_utf8(text):
        raise TaskError("TASK", text, "run.json could not hold this name, which is not UTF-8")
    return place, attribute


def _locate_file(text: str, place: str, bases: list[Path]) -> Reference:
    for base in bases:
        path = base / Path(place).expanduser()
        if path.is_file():
            file = path.resolve()  # `python file.py` also follows links to find the folder
            return Reference(text, file, file.parent, goes_first=True)
    raise TaskError("TASK", place, "there is no such file")


def _locate_module(text: str, name: str, attribute: str, base: Path) -> Reference:
    if not all(part.isidentifier() for part in name.split(".")):
        raise TaskError("TASK", name, "this is not the name of a module; the path of a file ends in .py")
    file, root = find_module(name, base)
    if file is not None and is_ours(name):
        return Reference(text, file)
    other = hidden_module(name.partition(".")[0], base)
    if other is not None:
        mend = f"an import of {other.name!r} finds {other.found}, not {other.beside}; rename yours"
        raise TaskError(
            "TASK", text, mend + (f" or give its path, {other.beside}:{attribute}" if "." not in name else "")
        )
    if file is None or root is None:
        return Reference(text)
    if not is_installed(root):
        return Reference(text, file, root, goes_first=root == base)
    package = root / name.partition(".")[0]
    return Reference(text, file, package if package.is_dir() else None)


def import_task(reference: Reference) -> tuple[Task, Reference]:
    """Import a task that `locate` found.

    The folder of the task stays at the front of the import path, as with `python file.py`.

    Raises:
        TaskError: see `load_task`.
    """
    if reference.goes_first and reference.folder is not None:
        put_first(reference.folder)
    before = reference.modules()
    try:
        task, module = _imported(reference)
    finally:
        _brought.update({name: sys.modules[name] for name in reference.modules() if name not in before})
    _refuse_hidden(reference)
    file = getattr(module, "__file__", None)  # a built-in module has no `__file__`
    return task, replace(reference, file=Path(file).absolute() if file is not None else None)


def _forget_brought() -> None:
    for name, module in _brought.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _brought.clear()


def _imported(reference: Reference) -> tuple[Task, ModuleType]:
    text = reference.text
    place, attribute = _parts(text)
    with _told_with_hint(reference):
        module = _from_file(reference.file) if place.endswith(".py") and reference.file else _from_module(place)
    if not hasattr(module, attribute):
        raise TaskError(
            "TASK", text, f"{place} has no {attribute!r}; {existing_names(attribute, _may_be_tasks(module), repr)}"
        )
    found = getattr(module, attribute)
    return (found if isinstance(found, Task) else _called(found, reference)), module


def _may_be_tasks(module: ModuleType) -> list[str]:
    """Return the names of the tasks in a module, and of the functions that the module defines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Task) or (isinstance(value, FunctionType) and value.__module__ == module.__name__)
    ]


def _called(found: object, reference: Reference) -> Task:
    if not callable(found):
        raise TaskError(
            "TASK", reference.text, f"it is of type {type(found).__name__}; name a Task, or a function that returns one"
        )
    with _told_with_hint(reference):
        task = found()
    if isinstance(task, Coroutine):
        task.close()  # otherwise Python warns that the coroutine was never awaited
        raise TaskError("TASK", reference.text, "it is an async function; remove the word async")
    if not isinstance(task, Task):
        raise TaskError(
            "TASK", reference.text, f"it returned a value of type {type(task).__name__}; return an esper.Task"
        )
    return task


def _refuse_hidden(reference: Reference) -> None:
    """Check the imports of a task.

    Raises:
        TaskError: an import finds another module than the module of the same name in the task's folder.
    """
    if reference.folder is None or str(reference.folder) not in sys.path:
        return
    for found in hidden_in(reference.folder, reference.modules().values(), reference.file):
        if found.name != "esper":  # `import esper` always means the package
            where = f"it imports {found.name!r} ({found.file}, line {found.line})"
            raise TaskError("TASK", reference.text, f"{where} and gets {found.found}, not {found.beside}: rename yours")


def _hint(reference: Reference, error: BaseException | None) -> str:
    """Return advice for a failed import. "": there is no advice."""
    if not isinstance(error, ImportError | AttributeError):
        return ""
    if str(error).startswith("attempted relative import"):
        return _named_by_module(reference)
    sought = error.name if isinstance(error, ImportError) else _name_of(error.obj)
    top = (sought or "").partition(".")[0]
    other = hidden_module(top, reference.folder or workplace()) if top else None
    return f"; {top!r} is {other.found}, not {other.beside}: rename yours" if other is not None else ""


def _name_of(module: object) -> str:
    return module.__name__ if isinstance(module, ModuleType) else ""


@contextmanager
def _told_with_hint(reference: Reference) -> Iterator[None]:
    """Raise exceptions of the user's code in the block as a `TaskError`, with a hint for failed imports."""
    try:
        with refused_as_theirs(), their_code("TASK", reference.text):
            yield
    except TaskError as refusal:
        mend = refusal.mend + _hint(reference, refusal.__cause__)
        raise TaskError(refusal.field, refusal.value, mend) from refusal.__cause__


def _named_by_module(reference: Reference) -> str:
    """Return a hint: the reference with which the relative imports of a task's file work."""
    if reference.file is None:
        return ""
    name, parent = module_name(reference.file)
    return f"; name it {name}:{_parts(reference.text)[1]} and run in {parent}"


def _from_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(missing + "."):
            raise  # the task's module exists; a module that it imports is missing, and the error names it
        raise TaskError("TASK", name, f"there is no module {missing!r} on the import path") from error


def _from_file(path: Path) -> ModuleType:
    name = f"{TASK_FILE}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle, for example, finds classes by the module name
    spec.loader.exec_module(module)
    return module
