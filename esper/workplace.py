"""Where relative paths start from: the working directory in which a command or call began, wherever it moves later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class _Workplace:
    """The working directory in which the outermost block began."""

    folder: Path
    given: dict[Path, Path] = field(default_factory=dict)
    """By absolute path: the path that a person gave for it."""


_began: ContextVar[_Workplace | None] = ContextVar("esper_workplace", default=None)


@contextmanager
def from_here() -> Iterator[None]:
    """While it lasts relative paths start from the present working directory; within another such block, from its."""
    try:
        token = _began.set(_began.get() or _Workplace(Path.cwd()))
    except FileNotFoundError:  # the folder was deleted: who needs it will say so
        yield
        return
    try:
        yield
    finally:
        _began.reset(token)


def workplace() -> Path:
    """Where relative paths start from."""
    began = _began.get()
    return began.folder if began is not None else Path.cwd()


def fixed(path: Path) -> Path:
    """The same place, absolute. `shown` gives `path` back for it, until the outermost block ends."""
    absolute = path if path.is_absolute() else workplace() / path
    if (began := _began.get()) is not None:
        began.given[absolute] = path
    return absolute


def shown(path: Path) -> str:
    """A place as it was given to `fixed`; one that was not given there, as it is."""
    began = _began.get()
    return str(began.given[path] if began is not None and path in began.given else path)
