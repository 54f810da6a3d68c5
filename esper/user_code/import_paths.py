"""The import path of a task: the folder of the task, the modules that were loaded from it, and modules that are hidden.

No module is imported. Import finders locate a file, so that its digest can be compared before its code runs.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from esper.ground.workplace import fixed

ROOT = Path(__file__).absolute().parents[2]
"""The folder with esper's packages."""
OURS = ("esper", "actors", "drills")
"""Names of the packages in `ROOT`."""
TASK_FILE = "esper_task_"
"""A task's file is loaded as a module with this prefix and the name of the file."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Names of folders for installed packages."""
_PYTHON = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def put_first(folder: Path) -> None:
    """Put a folder at the front of the import path."""
    place = str(folder)
    if place in sys.path:
        sys.path.remove(place)
    sys.path.insert(0, place)


def absolute_path() -> tuple[str, ...]:
    """Return the import path with absolute folders, for another process; see `join_path`."""
    return tuple(str(fixed(Path(place))) for place in sys.path)


def join_path(path: Sequence[str]) -> None:
    """Use the import path of another process. Further entries of this process are appended."""
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]


def is_ours(name: str) -> bool:
    """Return whether a dotted name belongs to a loaded package of esper."""
    head = sys.modules.get(name.partition(".")[0])
    return name.partition(".")[0] in OURS and head is not None and _lies_in(head, ROOT)


def is_installed(path: Path) -> bool:
    """Return whether a path belongs to an installed package or to Python's library. Links are not followed."""
    return not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in _PYTHON)


def is_of_esper(file: Path) -> bool:
    """Return whether a file lies in a package of esper."""
    return any(file.is_relative_to(ROOT / name) for name in OURS)


def is_the_users(file: Path) -> bool:
    """Return whether a file belongs to the user. Files of Python, of installed packages and of esper do not."""
    return not is_installed(file) and not is_of_esper(file)


def find_module(name: str, first: Path) -> tuple[Path | None, Path | None]:
    """Return the file of a module, and the folder that contains the top package of the module.

    Args:
        name: Dotted name of the module.
        first: Folder that is searched before the import path, as `python -m` searches the working directory first.

    Returns:
        None and None if no finder finds a file.
    """
    parts = name.split(".")
    spec = _top(parts[0], first)
    for depth in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None, None
        spec = _asked(".".join(parts[:depth]), list(spec.submodule_search_locations))
    if spec is None or not spec.has_location or spec.origin is None:
        return None, None
    file = Path(spec.origin).absolute()
    is_package = spec.submodule_search_locations is not None  # the file of a package is NAME/__init__.py
    return file, file.parents[len(parts) - 1 + is_package]


def _top(name: str, first: Path) -> ModuleSpec | None:
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded.__spec__  # an import finds a built-in module before modules on the path
    return PathFinder.find_spec(name, [str(first), *sys.path]) or _asked(name, None)


def _asked(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Return the spec of a module by its name, from the first import finder of this process that finds the module."""
    answers = (finder.find_spec(name, path) for finder in sys.meta_path)
    return next((spec for spec in answers if spec is not None), None)


def modules_in(folder: Path) -> dict[str, Path]:
    """Return name and file of each loaded module in a folder or below. Installed modules and modules of esper are left
    out.
    """
    loaded = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    files = {name: file_of(module) for name, module in loaded if not is_ours(name)}
    return {name: file for name, file in files.items() if file is not None and _belongs(file, folder)}


def _belongs(file: Path, folder: Path) -> bool:
    """Return whether a file lies in a folder and is not installed there.

    If the folder is installed, all its files belong to it.
    """
    return file.is_relative_to(folder) and (is_installed(folder) or not is_installed(file))


def file_of(module: ModuleType) -> Path | None:
    """Return the absolute file of a module, without following links. None: the module has no file."""
    file = vars(module).get("__file__")  # a built-in module has no `__file__`
    return Path(file).absolute() if isinstance(file, str) else None


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Return whether a module's file lies in a folder or below. If a package has no file, its folders are checked."""
    file = file_of(module)
    if file is not None:
        return file.is_relative_to(folder)
    held = vars(module)
    return "__path__" in held and any(Path(place).absolute().is_relative_to(folder) for place in held["__path__"])


@dataclass(frozen=True)
class Hidden:
    """A hidden module in a task's folder. An import of this name finds another module."""

    name: str
    beside: Path
    """The hidden file or folder."""
    found: str
    """Description of the module that the import finds."""
    file: Path | None = None
    """Source file with the import statement. None: only a name was checked, so there is no statement."""
    line: int | None = None
    """Line of the import statement. None: there is no file."""


def hidden_module(name: str, folder: Path) -> Hidden | None:
    """Return the module in a folder that is hidden by a loaded module of the same name from another place.

    None: no module is hidden.
    """
    loaded = sys.modules.get(name)
    if not isinstance(loaded, ModuleType) or _lies_in(loaded, folder):
        return None
    spec = PathFinder.find_spec(name, [str(folder)])
    if spec is None or not (spec.has_location or name in OURS):  # folders without __init__.py come last
        return None
    beside = Path(spec.origin) if spec.has_location and spec.origin is not None else folder / name
    return Hidden(name, beside, _description(name, loaded))


def _description(name: str, loaded: ModuleType) -> str:
    file = file_of(loaded)
    if is_ours(name):
        return f"esper's own package of that name ({file})"
    return str(file) if file is not None else "the module of that name that is built into Python"


def hidden_in(folder: Path, files: Iterable[Path], task_file: Path | None = None) -> Iterator[Hidden]:
    """Yield each import in `files` that finds a module elsewhere, although `folder` has a module of the same name.

    Args:
        task_file: The task's file. It is skipped, because it is loaded under a special name (`TASK_FILE`), so no import
            refers to it.
    """
    names = {entry.name.partition(".")[0] for entry in folder.iterdir()}
    found = {name: other for name in names if (other := hidden_module(name, folder)) and other.beside != task_file}
    for file in files if found else ():
        for name, line in _imports(file):
            if name in found:
                other = found[name]
                yield Hidden(name, other.beside, other.found, file, line)


def _imports(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the top name and the line of each absolute import in a Python file. For other files, yield nothing."""
    for node in ast.walk(ast.parse(file.read_bytes())) if file.suffix == ".py" else ():
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0], node.lineno


def module_name(file: Path) -> tuple[str, Path]:
    """Return a dotted name with which the relative imports of a file work, and the folder in which to run the file."""
    levels = [node.level for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.ImportFrom)]
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file() or len(parts) <= max(levels, default=1):
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts), folder
