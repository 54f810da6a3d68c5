"""The modules of esper/durable as one bundle, real or with a mutation in their source. It tests nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import esper.durable

ROOM = Path(esper.durable.__file__).parent
MODULES = ("files", "log_format", "log", "segments", "streams")
"""In the order in which they import each other."""


@dataclass(frozen=True)
class Code:
    """One version of the room; every check takes one."""

    files: ModuleType
    log_format: ModuleType
    log: ModuleType
    segments: ModuleType
    streams: ModuleType


REAL = Code(*(import_module(f"esper.durable.{name}") for name in MODULES))


def mutated(changes: dict[str, list[tuple[str, str]]]) -> Code:
    """The room with texts of its source replaced: module -> (old, new); each old must be there exactly once.

    Raises:
        ValueError: a text is not there, or there more than once: the mutant would not be the one that was meant.
    """
    full = [f"esper.durable.{name}" for name in MODULES]
    before = {name: sys.modules[name] for name in full}
    package = {name: getattr(esper.durable, name) for name in MODULES}
    try:
        return Code(*(_module(name, changes.get(name) or []) for name in MODULES))
    finally:
        sys.modules.update(before)
        for name, module in package.items():
            setattr(esper.durable, name, module)


def _module(name: str, changes: list[tuple[str, str]]) -> ModuleType:
    path = ROOM / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{path.name} holds {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    module = ModuleType(f"esper.durable.{name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # those that follow import this one
    exec(compile(source, f"<mutant of {path.name}>", "exec"), module.__dict__)
    return module
