"""Finds the drills that a command line names."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path

from drills.catalogue import CATALOGUE
from drills.drill import Drill
from esper.errors import ConfigError, TaskError
from esper.ground.suggest import existing_names
from esper.user_code.their_code import refused_as_theirs, their_code


def chosen(names: Sequence[str], *, every: bool, file: str | None) -> list[Drill]:
    """Return the drills, each once, in the given order.

    Raises:
        ConfigError: no drill is named, or a name is unknown (the error names the nearest).
        TaskError: `file` has no drill.
    """
    if every and (names or file):
        raise ConfigError("--all", " ".join([*names, file or ""]).strip(), "give names, or --all")
    found = [one for one in CATALOGUE if not one.needs] if every else [one for name in names for one in _named(name)]
    if file is not None:
        found.append(_own(file))
    if not found:
        raise ConfigError("NAME", "", "name a drill (`esper drill list` shows them), or give --all")
    return list(dict.fromkeys(found))


def _named(name: str) -> list[Drill]:
    """Return the drill of a name, or all drills of a number."""
    found = [one for one in CATALOGUE if name in (one.name, str(one.number))]
    if not found:
        raise ConfigError("NAME", name, f"no such drill; {existing_names(name, [one.name for one in CATALOGUE])}")
    return found


def _own(text: str) -> Drill:
    place, mark, attribute = text.rpartition(":")
    if not mark or not Path(place).is_file():
        raise ConfigError("--file", text, "use path/to/file.py:attribute")
    with refused_as_theirs(), their_code("--file", text):
        names = runpy.run_path(place)
    if attribute not in names:
        raise TaskError("--file", text, f"{place} has no {attribute!r}; {existing_names(attribute, names)}")
    if not isinstance(names[attribute], Drill):
        raise TaskError("--file", text, f"it is of type {type(names[attribute]).__name__}; name a drills.Drill")
    found: Drill = names[attribute]
    return found
