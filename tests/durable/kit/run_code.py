"""The modules that keep a run, as one bundle, real or with a mutation in their source. It tests nothing.

Their threads are replaced by `Worker`: who does what before whom is then said by the test and not by chance.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import esper

MODULES = (
    "esper.archive.journal",
    "esper.archive.damage",
    "esper.archive.generations",
    "esper.archive.history",
    "esper.tolaria.checkpoint_file",
    "esper.tolaria.background_save",
    "esper.flow.checkpoints",
    "esper.flow.takeover",
)
"""In the order in which they import each other."""

PACE = SimpleNamespace(writes_at_once=True)
"""Whether a trainer writes a checkpoint as soon as it was asked to, or when somebody waits for it."""


@dataclass(frozen=True)
class RunCode:
    """One version of the modules."""

    journal: ModuleType
    damage: ModuleType
    generations: ModuleType
    history: ModuleType
    checkpoint_file: ModuleType
    background_save: ModuleType
    checkpoints: ModuleType
    takeover: ModuleType


class Job:
    """A future whose work is done when its turn comes. An error is raised there, to whoever had it done."""

    def __init__(self, worker: Worker, call: Callable[[], Any]) -> None:
        self._worker, self._call = worker, call
        self._answer: Any = None
        self._done = False

    def done(self) -> bool:
        return self._done

    def run(self) -> None:
        self._done = True
        self._answer = self._call()

    def result(self) -> Any:
        self._worker.work_until(self)
        return self._answer


class Worker:
    """A `ThreadPoolExecutor(1)` without a thread: a job is done when it is handed in, or when it is waited for."""

    def __init__(self, at_once: Callable[[], bool]) -> None:
        self._at_once, self._jobs = at_once, deque[Job]()

    def submit(self, call: Callable[..., Any], *given: Any) -> Job:
        job = Job(self, lambda: call(*given))
        self._jobs.append(job)
        if self._at_once():
            self.work_until(job)
        return job

    def work_until(self, last: Job) -> None:
        while not last.done():
            self._jobs.popleft().run()

    def shutdown(self, wait: bool = True) -> None:
        if wait and self._jobs:
            self.work_until(self._jobs[-1])


def mutated(changes: dict[str, list[tuple[str, str]]]) -> RunCode:
    """The modules with texts of their source replaced: last part of the name -> (old, new); each old is there once.

    Raises:
        ValueError: a text is not there, or there more than once: the mutant would not be the one that was meant.
    """
    before = {name: import_module(name) for name in MODULES}
    try:
        found = {name.rpartition(".")[2]: _module(name, changes) for name in MODULES}
    finally:
        for name, module in before.items():
            sys.modules[name] = module
            package, _, last = name.rpartition(".")
            setattr(sys.modules[package], last, module)
    found["journal"].ThreadPoolExecutor = lambda *_a, **_k: Worker(lambda: True)
    found["background_save"].ThreadPoolExecutor = lambda *_a, **_k: Worker(lambda: PACE.writes_at_once)
    found["checkpoints"].ThreadPoolExecutor = lambda *_a, **_k: Worker(lambda: False)
    found["background_save"].time = SimpleNamespace(monotonic=lambda: 0.0)  # what it measured is in the record
    return RunCode(**found)


def _module(name: str, changes: dict[str, list[tuple[str, str]]]) -> ModuleType:
    path = Path(esper.__file__).parent.parent / f"{name.replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8")
    for old, new in changes.get(name.rpartition(".")[2]) or []:
        if source.count(old) != 1:
            raise ValueError(f"{path.name} holds {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # those that follow import this one
    exec(compile(source, f"<mutant of {path.name}>", "exec"), module.__dict__)
    package, _, last = name.rpartition(".")
    setattr(sys.modules[package], last, module)
    return module


REAL = mutated({})
