"""Puts a workload through every crash that it can think of, within a budget, and counts the distinct ones.

Three kinds of crash: in the work itself; in the work of a process that found what a killed one had left in memory; in
the recovery from a crash. Each comes after every change that the disk was asked for, and after every promise.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from code_under_test import Code
from crash_disk import CrashDisk, Killed, State
from workloads import Broken, Mark, Promise, Promises, Workload

from esper.errors import EsperError


@contextmanager
def the_same_secrets() -> Iterator[None]:
    """While it lasts salts and names of temporary files come from one seed: what failed once fails again."""
    rng, before = random.Random(0), (secrets.randbits, secrets.token_hex)
    secrets.randbits, secrets.token_hex = rng.getrandbits, lambda count: rng.randbytes(count).hex()
    try:
        yield
    finally:
        secrets.randbits, secrets.token_hex = before


@dataclass
class Tally:
    """What was tried. A state counts once for each promise under which it was met."""

    points: int = 0
    states: int = 0
    seen: set[int] = field(default_factory=set)
    nested: list[tuple[State, Promise]] = field(default_factory=list)


@dataclass
class Torture:
    """One workload on one version of the code.

    Args:
        per_point: States tried at each point where the power may fail.
        nested_every: Of the states, one in so many is recovered from on a disk that crashes again.
        extra_bytes: Makes every record longer by so much, and so every cut another.
    """

    code: Code
    workload: Workload
    per_point: int
    nested_every: int
    extra_bytes: int = 0
    tally: Tally = field(default_factory=Tally)

    def all(self) -> Tally:
        """Raises: Broken, EsperError: a promise was not kept in some state; its note says in which."""
        with the_same_secrets():
            return self._all()

    def _all(self) -> Tally:
        stale = self._stale()
        length = self._work(CrashDisk(stale=stale))
        for kill_at in range(length if self.workload.killed else 0):
            self._killed(CrashDisk(stale=stale), kill_at)
        for state, promise in self.tally.nested.copy():
            self._recover(CrashDisk(state, stale=stale), promise)
        return self.tally

    def _stale(self) -> bytes:
        """What an earlier log of the same shape left on the blocks: cut as what is written now, and other."""
        disk = CrashDisk()
        self.workload.run(self.code, disk, Promises(), Mark("o", self.extra_bytes))
        return max((data for name, data in disk.contents().items() if name.endswith((".log", ".json"))), key=len)

    @property
    def _mark(self) -> Mark:
        return Mark("n", self.extra_bytes)

    def _work(self, disk: CrashDisk) -> int:
        promises = Promises()
        self._watch(disk, promises)
        self.workload.run(self.code, disk, promises, self._mark)
        return disk.done

    def _killed(self, disk: CrashDisk, kill_at: int) -> None:
        promises = Promises()
        disk.kill_at = kill_at
        try:
            self.workload.run(self.code, disk, promises, self._mark)
        except Killed:
            disk.end_process()
        disk.faults.clear()
        disk.bytes_per_write = None
        self._recover(disk, promises.now)

    def _recover(self, disk: CrashDisk, promise: Promise) -> None:
        promises = Promises(promise)
        self._watch(disk, promises, nest=False)
        self.workload.resume(self.code, disk, promises)

    def _watch(self, disk: CrashDisk, promises: Promises, *, nest: bool = True) -> None:
        def watch() -> None:
            self.tally.points += 1
            promise = promises.now
            for state in disk.states(random.Random(self.tally.points), self.per_point):
                key = hash((tuple(sorted(state.items())), promise))
                if key in self.tally.seen:
                    continue
                self.tally.seen.add(key)
                self.tally.states += 1
                if nest and self.tally.states % self.nested_every == 0:
                    self.tally.nested.append((state, promise))
                self._check(state, promise)

        disk.watch = promises.moved = watch

    def _check(self, state: State, promise: Promise) -> None:
        disk = CrashDisk(state)
        try:
            self.workload.resume(self.code, disk, Promises(promise))
        except (Broken, EsperError) as error:
            error.add_note(f"workload {self.workload.name!r}, {promise}, after the crash {state}")
            raise
