"""The modules that keep a run, as one bundle, real or with a mutation in their source. It tests nothing.

Their threads are replaced by `Worker`: who does what before whom is then said by the test and not by chance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from mutating import Changes, mutated_modules

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


def mutated(changes: Changes) -> RunCode:
    """The modules with texts of their source replaced, see `mutated_modules`; each bundle has modules of its own."""
    found = mutated_modules(MODULES, {"journal": (), **changes})  # the first: all are made anew
    found["journal"].ThreadPoolExecutor = lambda *_a, **_k: Worker(lambda: True)
    found["background_save"].ThreadPoolExecutor = lambda *_a, **_k: Worker(lambda: PACE.writes_at_once)
    found["checkpoints"].ThreadPoolExecutor = lambda *_a, **_k: Worker(lambda: False)
    found["background_save"].time = SimpleNamespace(monotonic=lambda: 0.0)  # what it measured is in the record
    return RunCode(**found)


REAL = mutated({})
