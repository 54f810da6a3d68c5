"""The base of relative paths. It is the working directory in which a command or call began, even if the process changes
its working directory later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from esper.errors import ConfigError


@dataclass
class _Workplace:
    """The working directory at the beginning of the outermost block."""

    folder: Path
    given: dict[Path, Path] = field(default_factory=dict)
    """The path that the user gave. The key is its absolute path."""


_began: ContextVar[_Workplace | None] = ContextVar("esper_workplace", default=None)


@contextmanager
def from_here() -> Iterator[None]:
    """Within the block, the base of relative paths is the present working directory. A nested block has the base of the
    outer block."""
    try:
        token = _began.set(_began.get() or _Workplace(workplace()))
    except ConfigError:  # no error here, because the code that needs the folder raises it
        yield
        return
    try:
        yield
    finally:
        _began.reset(token)


def workplace() -> Path:
    """Return the base of relative paths.

    Raises:
        ConfigError: the working directory was deleted, or this user may not read it.
    """
    if (began := _began.get()) is not None:
        return began.folder
    try:
        return Path.cwd()
    except OSError as error:
        mend = f"cannot be used: {error.strerror}; change to a folder that exists"
        raise ConfigError("working directory", os.environ.get("PWD"), mend) from error


def fixed(path: Path) -> Path:
    """Return the absolute form of `path`. Until the outermost block ends, `shown` turns it back into `path`.

    Raises:
        ConfigError: the path is relative, and the working directory cannot be used.
    """
    absolute = path if path.is_absolute() else workplace() / path
    if (began := _began.get()) is not None:
        began.given[absolute] = path
    return absolute


def shown(path: Path) -> str:
    """Return the path that was given to `fixed`. Return other paths unchanged."""
    began = _began.get()
    return str(began.given[path] if began is not None and path in began.given else path)
