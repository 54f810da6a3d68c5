"""Modules with texts of their source replaced."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import esper

Changes = Mapping[str, Sequence[tuple[str, str]]]
"""Last part of a module's name -> (old, new) of its source."""


def mutated_modules(names: Sequence[str], changes: Changes) -> dict[str, ModuleType]:
    """Last part of each name -> its module, made anew from the first on that changes. Each old text is there once.

    Args:
        names: Of the modules, in the order in which they import each other.

    Raises:
        ValueError: a text is not there, or there more than once: the mutant would not be the one that was meant.
    """
    before = {name: import_module(name) for name in names}
    found = dict[str, ModuleType]()
    try:
        for name, module in before.items():
            own = name.rpartition(".")[2]
            first = not changes.keys() & found.keys() and own not in changes  # it imports nothing that is changed
            found[own] = module if first else _module(name, changes.get(own) or ())
    finally:
        for name, module in before.items():
            _put(name, module)
    return found


def _module(name: str, changes: Sequence[tuple[str, str]]) -> ModuleType:
    path = Path(esper.__file__).parents[1] / f"{name.replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8")
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{path.name} holds {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    module = ModuleType(name)
    module.__file__ = str(path)
    _put(name, module)  # those that follow import this one
    exec(compile(source, f"<mutant of {path.name}>", "exec"), module.__dict__)
    return module


def _put(name: str, module: ModuleType) -> None:
    package, _, own = name.rpartition(".")
    sys.modules[name] = module
    setattr(sys.modules[package], own, module)
