"""Checks the types of the arguments of public functions, before anything is read or written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from esper.errors import ConfigError


def check_type(field: str, value: object, kinds: type | tuple[type, ...], mend: str) -> None:
    """Check an argument that is not None.

    Raises:
        ConfigError: the argument has none of these types. `mend` tells what to give.
    """
    if value is not None and not isinstance(value, kinds):
        raise ConfigError(field, value, f"{mend}, not {_kind(value)}")


def check_methods(field: str, value: object, names: Iterable[str], mend: str) -> None:
    """Check that an argument, if it is not None, is an object with these methods. Raises: ConfigError: it is not."""
    if value is None:
        return
    lacking = [name for name in names if not (hasattr(value, name) and callable(getattr(value, name)))]
    if isinstance(value, type) or lacking:
        why = f"the method {lacking[0]!r} is missing" if lacking else "this is a class"
        raise ConfigError(field, value, f"{why}; {mend}")


def path_of(field: str, value: object) -> Path:
    """Return an argument as a path. Raises: ConfigError: it is not a path."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ConfigError(field, value, f"give a path as a text or a pathlib.Path, not {_kind(value)}")
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ConfigError(field, value, "give a path that is not empty and has no NUL character")
    return Path(value)


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
