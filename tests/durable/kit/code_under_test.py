"""The modules of esper/durable and the emergency queue as one bundle, real or with a mutation in their source. It tests
nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import esper

DURABLE = ("files", "log_format", "log", "segments", "streams")
QUEUE = ("records", "queue_state", "schedule", "reserve", "reading", "queue")
MODULES = {**{name: f"esper.durable.{name}" for name in DURABLE}, **{name: f"esper.emergency.{name}" for name in QUEUE}}
"""In the order in which they import each other."""


@dataclass(frozen=True)
class Code:
    """One version of the modules; every check takes one."""

    files: ModuleType
    log_format: ModuleType
    log: ModuleType
    segments: ModuleType
    streams: ModuleType
    records: ModuleType
    queue_state: ModuleType
    schedule: ModuleType
    reserve: ModuleType
    reading: ModuleType
    queue: ModuleType


REAL = Code(*(import_module(name) for name in MODULES.values()))


def mutated(changes: dict[str, list[tuple[str, str]]]) -> Code:
    """The modules with texts of its source replaced: module -> (old, new); each old must be there exactly once.

    Raises:
        ValueError: a text is not there, or there more than once: the mutant would not be the one that was meant.
    """
    before = {name: sys.modules[name] for name in MODULES.values()}
    first = min([*MODULES].index(name) for name in changes)  # those before it import nothing that is changed
    try:
        return Code(
            *(
                _module(name, changes.get(name) or []) if n >= first else sys.modules[MODULES[name]]
                for n, name in enumerate(MODULES)
            )
        )
    finally:
        sys.modules.update(before)
        for name, module in before.items():
            room, _, own = name.rpartition(".")
            setattr(sys.modules[room], own, module)


def _module(name: str, changes: list[tuple[str, str]]) -> ModuleType:
    path = Path(esper.__file__).parents[1] / f"{MODULES[name].replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8")
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{path.name} holds {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    module = ModuleType(MODULES[name])
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # those that follow import this one
    exec(compile(source, f"<mutant of {path.name}>", "exec"), module.__dict__)
    return module
