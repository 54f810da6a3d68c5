"""Puts a run through every crash that it can think of, as torture.py does a log, and counts the distinct ones.

The power fails after every change and every promise: in the scenario; in what a process does that goes on after a kill;
in what one does that goes on after a crash. In each state that is left `look` must find what was promised.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from crash_disk import Killed, State
from crash_tree import HERE, CrashTree, in_memory
from run_code import RunCode
from run_lives import Commits, Life, Promise, Promises, Scenario, look
from torture import the_same_secrets
from workloads import Broken

from esper.errors import EsperError

ROUNDS_AFTER = 2


@dataclass
class RunTally:
    """What was tried. A state counts once for each promise under which it was met."""

    points: int = 0
    states: int = 0
    gone_on: int = 0
    kills: int = 0
    seen: set[int] = field(default_factory=set)
    nested: list[tuple[State, Promise]] = field(default_factory=list)


@dataclass
class RunTorture:
    """One scenario on one version of the code.

    Args:
        per_point: States with a torn write that are tried at each point where the power may fail; all others are, too.
        nested_every: Of the states, one in so many is gone on from, on a disk that crashes again.
        kill_every: Of the points, one in so many is where the process is killed; 0: none.
    """

    code: RunCode
    scenario: Scenario
    per_point: int
    nested_every: int
    kill_every: int
    tally: RunTally = field(default_factory=RunTally)
    loaded: set[Commits] = field(default_factory=set)

    def all(self) -> RunTally:
        """Raises: Broken, EsperError: a promise was not kept in some state; its note says in which."""
        with the_same_secrets(), in_memory():
            stale = self._stale()
            moments = self._happens(CrashTree(stale=stale))
            for kill_at in moments[:: self.kill_every] if self.kill_every else ():
                self._killed(CrashTree(stale=stale), kill_at)
            for state, promise in self.tally.nested.copy():
                self.tally.gone_on += 1
                self._goes_on(CrashTree(state, stale=stale), promise)
            return self.tally

    def _stale(self) -> bytes:
        """What the journal of an earlier run left on the blocks."""
        HERE.disk = disk = CrashTree()
        self.scenario.run(self.code, Promises())
        return max((data for name, data in disk.contents().items() if name.endswith(".log")), key=len)

    def _happens(self, disk: CrashTree) -> list[int]:
        """Returns after how many changes something was different from before."""
        moments: list[int] = []
        promises = self._watched(disk, Promises(), moments=moments)
        self.scenario.run(self.code, promises)
        return [moment for moment in moments if moment < disk.done]

    def _killed(self, disk: CrashTree, kill_at: int) -> None:
        HERE.disk, promises = disk, Promises()
        disk.kill_at = kill_at
        with pytest.raises(Killed):
            self.scenario.run(self.code, promises)
        disk.end_process()
        disk.faults.clear()
        self.tally.kills += 1
        self._goes_on(disk, promises.now)

    def _goes_on(self, disk: CrashTree, promise: Promise) -> None:
        promises = self._watched(disk, Promises(promise), nest=False)
        with self._noted(disk.contents(), promise):
            if not look(self.code, promise, self.loaded):
                return
        with self._noted(disk.contents(), promise):
            Life.resume(self.code, promises).rounds(ROUNDS_AFTER).end()
            look(self.code, promises.now, self.loaded)

    def _watched(
        self, disk: CrashTree, promises: Promises, *, nest: bool = True, moments: list[int] | None = None
    ) -> Promises:
        def watch() -> None:
            if disk.only_temporary:
                return
            if moments is not None and (not moments or moments[-1] != disk.done):
                moments.append(disk.done)
            self.tally.points += 1
            try:
                for state in disk.states(
                    random.Random(self.tally.points), self.per_point if nest else self.per_point // 4
                ):
                    self._meet(state, promises.now, nest)
            except BaseException:
                disk.watch = None  # the code under test may yet clean up
                raise
            finally:
                HERE.disk = disk

        HERE.disk = disk
        disk.watch = promises.moved = watch
        return promises

    def _meet(self, state: State, promise: Promise, nest: bool) -> None:
        key = hash((tuple(sorted(state.items())), promise))
        if key in self.tally.seen:
            return
        self.tally.seen.add(key)
        self.tally.states += 1
        if nest and self.tally.states % self.nested_every == 0:
            self.tally.nested.append((state, promise))
        HERE.disk = CrashTree(state)
        with self._noted(state, promise):
            look(self.code, promise, self.loaded)

    @contextmanager
    def _noted(self, state: State, promise: Promise) -> Iterator[None]:
        try:
            yield
        except (Broken, EsperError) as error:
            error.add_note(f"scenario {self.scenario.name!r}, {promise}, from {sorted(state)}")
            raise
