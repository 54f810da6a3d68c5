"""Where relative paths start from: the working directory in which a command or call began, wherever it moves later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_began: ContextVar[Path | None] = ContextVar("esper_workplace", default=None)


@contextmanager
def from_here() -> Iterator[None]:
    """While it lasts relative paths start from the present working directory; within another such block, from its."""
    try:
        token = _began.set(_began.get() or Path.cwd())
    except FileNotFoundError:  # the folder was deleted: who needs it will say so
        yield
        return
    try:
        yield
    finally:
        _began.reset(token)


def workplace() -> Path:
    """Where relative paths start from."""
    return _began.get() or Path.cwd()


def fixed(path: Path) -> Path:
    """The same place, absolute."""
    return path if path.is_absolute() else workplace() / path


def shown(path: Path) -> str:
    """A place as people name it: from the workplace on, if it lies below."""
    began = _began.get()
    return str(path.relative_to(began) if began is not None and path.is_relative_to(began) else path)
