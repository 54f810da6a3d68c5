"""The import path of a task: its folder, the modules that were loaded from it, and modules that hide others.

It imports nothing: a module's file is found by asking the finders, so that its digest can be compared first.
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
"""The folder that holds esper's own packages."""
OURS = ("esper", "actors", "drills")
"""Names of those packages."""
TASK_FILE = "esper_task_"
"""Begin of the name under which the module of a task's file is loaded; the name of the file follows."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Names of folders that packages are installed into: an environment's, a user's, the system's."""
_PYTHON = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def put_first(folder: Path) -> None:
    """Put a folder at the front of the import path."""
    place = str(folder)
    if place in sys.path:
        sys.path.remove(place)
    sys.path.insert(0, place)


def absolute_path() -> tuple[str, ...]:
    """This process's import path, for another process: relative folders are made absolute."""
    return tuple(str(fixed(Path(place))) for place in sys.path)


def join_path(path: Sequence[str]) -> None:
    """Adopt another process's import path; entries that only this process has come after it."""
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]


def is_ours(name: str) -> bool:
    """A dotted name stands for a loaded module of esper's own."""
    head = sys.modules.get(name.partition(".")[0])
    return name.partition(".")[0] in OURS and head is not None and _lies_in(head, ROOT)


def is_installed(path: Path) -> bool:
    """A file or folder, as the import path names it, is of an installed package or of Python's own library."""
    return not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(folder) for folder in _PYTHON)


def is_of_esper(file: Path) -> bool:
    """A file lies in one of esper's own packages."""
    return any(file.is_relative_to(ROOT / name) for name in OURS)


def is_the_users(file: Path) -> bool:
    """A file is neither Python's, nor an installed package's, nor esper's."""
    return not is_installed(file) and not is_of_esper(file)


def find_module(name: str, first: Path) -> tuple[Path | None, Path | None]:
    """The file of a module and the folder that its top package lies in.

    Args:
        name: Dotted.
        first: Searched before the import path, as `python -m` searches the working directory.

    Returns:
        None and None where no finder knows a file.
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
    is_package = spec.submodule_search_locations is not None  # its file is NAME/__init__.py
    return file, file.parents[len(parts) - 1 + is_package]


def _top(name: str, first: Path) -> ModuleSpec | None:
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded.__spec__  # an import takes it, whatever else lies on the path
    return PathFinder.find_spec(name, [str(first), *sys.path]) or _asked(name, None)


def _asked(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """The first answer of the interpreter's finders."""
    answers = (finder.find_spec(name, path) for finder in sys.meta_path)
    return next((spec for spec in answers if spec is not None), None)


def modules_in(folder: Path) -> dict[str, Path]:
    """Name and file of each module that was loaded from a folder or below, without installed ones and without ours."""
    loaded = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    files = {name: file_of(module) for name, module in loaded if not is_ours(name)}
    return {name: file for name, file in files.items() if file is not None and _belongs(file, folder)}


def _belongs(file: Path, folder: Path) -> bool:
    """A file lies in a folder and is not installed there; the folder may be an installed package itself."""
    return file.is_relative_to(folder) and (is_installed(folder) or not is_installed(file))


def file_of(module: ModuleType) -> Path | None:
    """The file of a module, as the import path names it: links are not followed; None where it has none."""
    file = vars(module).get("__file__")  # a module that is built in has none
    return Path(file).absolute() if isinstance(file, str) else None


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """The module's file is in a folder or below; of a package without a file, one of its folders is."""
    file = file_of(module)
    if file is not None:
        return file.is_relative_to(folder)
    held = vars(module)
    return "__path__" in held and any(Path(place).absolute().is_relative_to(folder) for place in held["__path__"])


@dataclass(frozen=True)
class Hidden:
    """A module in a task's folder that is hidden: an import finds another module of the same name."""

    name: str
    beside: Path
    """The hidden file or folder."""
    found: str
    """The module that is found instead, in words."""
    file: Path | None = None
    """Line of the import statement."""
    line: int | None = None


def hidden_module(name: str, folder: Path) -> Hidden | None:
    """The module of a name that lies in a folder, if one from elsewhere is loaded under this name."""
    loaded = sys.modules.get(name)
    if not isinstance(loaded, ModuleType) or _lies_in(loaded, folder):
        return None
    spec = PathFinder.find_spec(name, [str(folder)])
    if spec is None or not (spec.has_location or name in OURS):  # any package goes before a folder without __init__.py
        return None
    beside = Path(spec.origin) if spec.has_location and spec.origin is not None else folder / name
    return Hidden(name, beside, _told(name, loaded))


def _told(name: str, loaded: ModuleType) -> str:
    file = file_of(loaded)
    if is_ours(name):
        return f"esper's own package of that name ({file})"
    return str(file) if file is not None else "the module of that name that is built into Python"


def hidden_in(folder: Path, files: Iterable[Path], task_file: Path | None = None) -> Iterator[Hidden]:
    """Each import in `files` whose module lies in a folder of the import path and is not what the import finds.

    Args:
        task_file: Skipped: esper loads a task's file under a name of its own, so no import refers to it.
    """
    names = {entry.name.partition(".")[0] for entry in folder.iterdir()}
    found = {name: other for name in names if (other := hidden_module(name, folder)) and other.beside != task_file}
    for file in files if found else ():
        for name, line in _imports(file):
            if name in found:
                other = found[name]
                yield Hidden(name, other.beside, other.found, file, line)


def _imports(file: Path) -> Iterator[tuple[str, int]]:
    """The top name of each absolute import in a source file, with its line; nothing of a compiled file."""
    for node in ast.walk(ast.parse(file.read_bytes())) if file.suffix == ".py" else ():
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0], node.lineno


def module_name(file: Path) -> tuple[str, Path]:
    """The dotted name under which the relative imports of a file work, and the folder to run in for it."""
    levels = [node.level for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.ImportFrom)]
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file() or len(parts) <= max(levels, default=1):
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts), folder
