"""What processes do to a run on a disk that crashes: what each was promised, and what must hold afterwards.

A `Life` is one conductor with its trainer, as `runner.py` and `line.py` lead them. A scenario is one life, or
several in a row. Everything that is promised of checkpoints is in `Promise`; `look` reads the run and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import google_crc32c
import pytest
import torch
from crash_tree import HERE, ROOT, CrashPath
from pydantic import BaseModel
from run_code import PACE, RunCode
from workloads import demand

from esper.archive.identity import Identity
from esper.archive.run_directory import checkpoints_folder, journals, run_file
from esper.config.joined import RunConfig
from esper.durable.files import make_folders
from esper.errors import StoreWriteFailed
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.tolaria.snapshot import HostSnapshot

RUN = CrashPath(ROOT) / "run"
FOLDER = checkpoints_folder(RUN)
KEEP, LAST = 2, 99
IDENTITY = Identity(
    run_id="run",
    generation=1,
    task="",
    task_file_sha256=None,
    started_at=datetime(2020, 1, 1, tzinfo=UTC),
    config=RunConfig(),
    total_steps=100,
    fence_steps=(0, 20, 40, 60, 80, 100),
    slots=(),
    versions={},
    cpu="",
    host_crc32c=0,
    samples_crc32c=0,
    trained_by="Adam()",
    argv=(),
)


class Named(BaseModel):
    """Stands in for an identity in the journal, where all but what is read would be more bytes to tear at."""

    generation: int
    config: dict[str, Any] = {"checkpoint": {"keep": KEEP}}

    def save(self, path: CrashPath) -> None:
        IDENTITY.model_copy(update={"generation": self.generation}).save(path)


NOBODY = 99
"""The generation that a writer who should be dead signs with."""


class One(NamedTuple):
    """A checkpoint that was committed."""

    fence: int
    generation: int
    file: str
    length: int
    crc: int


def one(written: CheckpointWritten) -> One:
    return One(written.fence, written.generation, written.file, written.length, written.crc)


Commits = tuple[One, ...]
"""Oldest first."""


@dataclass(frozen=True)
class Past:
    """Checkpoints that count: those that must be there, oldest first, and those that were dropped and may come back."""

    needed: Commits = ()
    dropped: frozenset[One] = frozenset()

    def committed(self, new: One) -> Past:
        """With one more: fence 0 and the newest stay."""
        every = (*self.needed, new)
        needed = tuple(each for each in every if each.fence == 0 or each in every[-KEEP:])
        return Past(needed, self.dropped.union(every).difference(needed))

    def back_at(self, fence: int | None) -> Past:
        """If the run goes on from there."""
        needed, dropped = (
            [each for each in some if fence is not None and each.fence <= fence] for some in vars(self).values()
        )
        return Past(tuple(needed), frozenset(dropped))

    def explains(self, told: Commits) -> bool:
        lost, back = set(self.needed).difference(told), set(told).difference(self.needed)
        return not lost and back <= self.dropped


@dataclass(frozen=True)
class Promise:
    """What a crash at this instant must leave.

    Attributes:
        started: Whether there is a run at all.
        pasts: One of these is what counts.
        rotten: Files whose bits have rotted: once put aside, such a one may be told or not.
        aside: Those of them that a process has put aside.
    """

    started: bool = False
    pasts: tuple[Past, ...] = (Past(),)
    rotten: frozenset[str] = frozenset()
    aside: frozenset[str] = frozenset()

    def judge(self, told: Commits) -> None:
        known = {each for past in self.pasts for each in (*past.needed, *past.dropped)}
        strange = [each for each in told if each not in known]
        demand(not strange, f"taken for committed: {strange}, of {self.pasts}")
        fences = [each.fence for each in told]
        demand(fences == sorted(set(fences)), f"out of order: {told}")
        demand(any(past.explains(told) for past in self._pasts_with(told)), f"lost: {told} is told, of {self.pasts}")

    def _pasts_with(self, told: Commits) -> Iterator[Past]:
        for past in self.pasts:
            gone = {each for each in past.needed if each.file in self.rotten}.difference(told)
            yield Past(tuple(each for each in past.needed if each not in gone), past.dropped)


@dataclass
class Promises:
    """The promise as it changes; `moved` is called when more is promised than before."""

    now: Promise = field(default_factory=Promise)
    moved: Callable[[], None] = lambda: None

    @property
    def past(self) -> Past:
        """What counts, where that is certain."""
        demand(len(self.now.pasts) == 1, f"a COMMIT while something else is under way: {self.now.pasts}")
        return self.now.pasts[0]

    def become(self, **changes: Any) -> None:  # Any: fields of a Promise
        self.now = replace(self.now, **changes)
        self.moved()

    @contextmanager
    def committing(self, new: One) -> Iterator[None]:
        """While it lasts the checkpoint may count; afterwards it does."""
        after = self.past.committed(new)
        self.now = replace(self.now, pasts=(self.past, Past((*self.past.needed, new), self.past.dropped)))
        yield
        self.become(pasts=(after,))

    @contextmanager
    def going_on(self, told: Commits, fence: int | None) -> Iterator[None]:
        """While it lasts a new generation may have begun; afterwards it has, and what it was told of counts."""
        dropped = frozenset[One]().union(*(past.dropped for past in self.now.pasts))
        after = Past(told, dropped.difference(told)).back_at(fence)
        before = self.now.pasts
        self.now = replace(self.now, pasts=_each((*before, *(past.back_at(fence) for past in before), after)))
        yield
        self.become(pasts=(after,))

    @contextmanager
    def going_back(self, fence: int) -> Iterator[None]:
        """While it lasts what came after the fence may be taken back; afterwards it is. A COMMIT may come meanwhile."""
        self.now = replace(self.now, pasts=_each((self.past, self.past.back_at(fence))))
        yield
        self.become(pasts=_each(past.back_at(fence) for past in self.now.pasts))


def _each(pasts: Iterable[Past]) -> tuple[Past, ...]:
    return tuple(dict.fromkeys(pasts))


# -- a life ----------------------------------------------------------------------------------------------------------


def state_of(fence: int, generation: int) -> dict[str, str]:
    return {"line": f"fence {fence} of generation {generation}"}


def host_at(fence: int) -> HostSnapshot:
    return HostSnapshot(
        step=20 * fence,
        fence=fence,
        total_steps=100,
        topology=(),
        tensors={"weight": torch.full((3,), float(fence))},
        optimizer={},
        scheduler=None,
        seed_optimizers={},
        best_round=None,
        receipts={},
        leaks={},
    )


class Trainer:
    """Stands in for the trainer: it holds one tensor and saves it as the trainer does, with the real saver."""

    def __init__(self, code: RunCode, generation: int) -> None:
        self.fence, self.generation = 0, generation
        self._saver = code.background_save.Saver(IDENTITY.run_id)

    def save(self, path: CrashPath, states: dict[str, str], incubation: dict[str, Any]) -> None:  # Any: none here
        self._saver.save(path, host_at(self.fence), self.generation, states, incubation)

    def saved(self) -> CheckpointWritten:
        return self._saver.saved()


class Watched:
    """A journal that tells the promises of each COMMIT and of who takes over, before and after."""

    def __init__(
        self, code: RunCode, journal: Any, promises: Promises, told: Commits = ()
    ) -> None:  # Any: the bundle's Journal
        self._code, self._journal, self._promises, self._told = code, journal, promises, told

    def supersede(self, from_fence: int | None) -> None:
        with self._promises.going_on(self._told, from_fence):
            self._journal.supersede(from_fence)

    @property
    def generation(self) -> int:
        return self._journal.generation

    def write(self, kind: int, message: CheckpointWritten | None = None, /, **fields: object) -> None:
        if kind is not self._code.journal.RecordKind.CHECKPOINT_COMMITTED:
            self._journal.write(kind, message, **fields)
            return
        with self._promises.committing(one(message)):
            self._journal.write(kind, message)


def checkpoints_of(code: RunCode, journal: object, commits: Sequence[CheckpointWritten] = (), every: int = 1) -> Any:
    """Returns the bundle's Checkpoints."""
    config = code.checkpoints.CheckpointConfig(keep=KEEP, every_rounds=every)
    return code.checkpoints.Checkpoints(FOLDER, journal, config, commits)


@dataclass
class Life:
    """One process that leads the run.

    Attributes:
        prompt: Whether a checkpoint is committed before the next round begins, or while it goes on.
        judging: Whether it looks now and then at what it promised, with no crash at all.
    """

    code: RunCode
    promises: Promises
    journal: Any
    checkpoints: Any
    trainer: Trainer
    fence: int | None = None
    prompt: bool = True
    judging: bool = True
    kept: int = 0
    """The fence of the last checkpoint that was begun."""

    @classmethod
    def begin(cls, code: RunCode, promises: Promises, *, every: int = 1, **how: bool) -> Life:
        """As `Conductor.begin`."""
        make_folders(RUN)
        IDENTITY.save(RUN)
        promises.become(started=True)
        journal = code.journal.Journal(RUN, 1)
        checkpoints = checkpoints_of(code, Watched(code, journal, promises), every=every)
        life = cls(code, promises, journal, checkpoints, Trainer(code, 1), **how)
        journal.write(code.journal.RecordKind.RUN_STARTED, Named(generation=1))
        life._pass_fence(0)
        return life

    @classmethod
    def resume(cls, code: RunCode, promises: Promises, **how: bool) -> Life:
        """As `Conductor.resume`, with fakes of what it calls."""
        past = code.history.settled_past(RUN)
        journal = code.journal.Journal(RUN, past.generation + 1)
        watched = Watched(code, journal, promises, tuple(map(one, past.commits)))
        checkpoints = checkpoints_of(code, watched, past.commits)
        life = cls(code, promises, journal, checkpoints, Trainer(code, journal.generation), **how)
        checkpoints.load_latest = partial(life.watch_loading, checkpoints.load_latest)
        taken = code.takeover.take_over(RUN, past, watched, checkpoints, Named(generation=journal.generation))
        if not past.damaged:
            life.judge_litter()
        life.fence = taken.saved.fence if taken.saved is not None else None
        life.kept = life.fence or 0
        if life.fence is None:
            life._pass_fence(0)
        return life

    def rounds(self, count: int) -> Life:
        for _ in range(count):
            self.measure()
            self._pass_fence(self.passed + 1)
        return self

    def measure(self) -> None:
        """End a round, and not yet pass the fence after it."""
        kind, fence = self.code.journal.RecordKind.ROUND_ENDED, self.passed + 1
        self.journal.write(kind, generation=self.journal.generation, **measured(fence))

    def roll_back(self, *, fast: bool) -> None:
        """As `Line.roll_back`: to the last fence, from memory, or to the last that was committed and loads."""
        fence = self.kept if fast else self.load_latest()
        with self.promises.going_back(fence):
            self.journal.begin_generation(fence)
        self.fence, self.trainer.generation = fence, self.journal.generation
        self.journal.write(self.code.journal.RecordKind.RESTORED, fence=fence, seconds=0.0)

    def load_latest(self) -> int:
        """Returns the fence that was loaded."""
        return self.watch_loading(self.checkpoints.load_latest).fence

    def watch_loading(self, load: Callable[..., Any], *trial: Any) -> Any:
        """Load, and promise that what was put aside lies there. Returns the bundle's FenceState."""
        there = {path.name for path in FOLDER.iterdir()}
        found = load(*trial)
        late = {each.file for past in self.promises.now.pasts for each in past.needed if each.fence > found.fence}
        self.promises.become(aside=self.promises.now.aside | (late & there & self.promises.now.rotten))
        return found

    def settle(self) -> None:
        self.checkpoints.settle()
        if self.judging:
            needed = self.promises.past.needed
            demand(bool(needed) and needed[-1].fence == self.kept, f"settled and not committed: fence {self.kept}")
            told = {one(each) for each in self.code.history.read_past(RUN).commits}
            demand(told == set(needed), f"not dropped, or dropped too early: {told}, of {needed}")

    def judge_litter(self) -> None:
        """After a sweep there are checkpoints that count, and no others."""
        if self.judging:
            kept = {each.file for each in self.checkpoints.committed}
            there = {path.name for path in FOLDER.iterdir()} - {"quarantine"}
            demand(there == kept, f"swept away too much or too little: {sorted(there)}, {sorted(kept)} count")

    def end(self) -> None:
        self.settle()
        self.checkpoints.close()
        self.journal.close()

    @property
    def passed(self) -> int:
        assert self.fence is not None, "it has passed no fence"
        return self.fence

    def _pass_fence(self, fence: int) -> None:
        self.fence = fence
        if not self.checkpoints.due(fence, LAST):
            return
        self.kept = self.trainer.fence = fence
        self.checkpoints.begin(self.trainer, fence, state_of(fence, self.trainer.generation), {})
        if self.prompt:
            self.settle()


# -- scenarios -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """Something that happens to a run.

    Attributes:
        writes_at_once: See `PACE`.
        prompt: See `Life`.
        planted: Whether an error of the disk is planted, as a real disk has none to order.
    """

    name: str
    happens: Callable[[RunCode, Promises, bool], None]
    writes_at_once: bool = True
    prompt: bool = True
    planted: bool = False

    def run(self, code: RunCode, promises: Promises) -> None:
        PACE.writes_at_once = self.writes_at_once
        try:
            self.happens(code, promises, self.prompt)
        finally:
            PACE.writes_at_once = True


def _fences(code: RunCode, promises: Promises, prompt: bool) -> None:
    Life.begin(code, promises, prompt=prompt).rounds(4).end()


def _taken_back(code: RunCode, promises: Promises, prompt: bool) -> None:
    life = Life.begin(code, promises, prompt=prompt).rounds(3)
    life.measure()
    life.roll_back(fast=True)
    life.rounds(2)
    life.roll_back(fast=False)
    life.roll_back(fast=True)
    life.rounds(1).end()


def _taken_back_further(code: RunCode, promises: Promises, prompt: bool) -> None:
    """Not every fence has a checkpoint: whole rounds are taken back."""
    life = Life.begin(code, promises, prompt=prompt, every=2).rounds(3)
    life.roll_back(fast=True)
    life.rounds(3)
    life.roll_back(fast=False)
    life.rounds(2).end()


def _not_taken_back(code: RunCode, promises: Promises, prompt: bool) -> None:
    """The disk refuses what a new journal takes over; the save in flight is committed there, and the run fails."""
    life = Life.begin(code, promises, prompt=prompt).rounds(2)
    life.measure()
    HERE.disk.faults["write"] = 1  # the journal's header is written, its first record is not
    with pytest.raises(StoreWriteFailed):
        life.roll_back(fast=True)
    life.settle()
    life.journal.write(code.journal.RecordKind.RUN_FAILED, error="StoreWriteFailed", fence=2, trace_id="")
    life.journal.close()
    Life.resume(code, promises).rounds(2).end()


def _died_early(code: RunCode, promises: Promises, prompt: bool) -> None:
    """Nothing was committed, and yet a checkpoint is there and a round has ended."""
    life = Life.begin(code, promises, prompt=prompt)
    life.measure()
    life.journal.close()
    Life.resume(code, promises).rounds(1).end()


def _died_in_a_save(code: RunCode, promises: Promises, prompt: bool) -> None:
    life = Life.begin(code, promises, prompt=prompt).rounds(2)
    life.measure()
    life.journal.close()
    Life.resume(code, promises).rounds(2).end()


def _outlived(code: RunCode, promises: Promises, prompt: bool) -> None:
    """A superseded process continues to write; a process that takes over dies before it has journaled that."""
    first = Life.begin(code, promises, prompt=prompt).rounds(2)
    first.settle()
    second = Life.resume(code, promises, prompt=prompt)
    haunt(first)
    second.rounds(2).settle()
    haunt(first)
    code.journal.Journal(RUN, 3).close()
    third = Life.resume(code, promises, prompt=prompt)
    haunt(first)
    haunt(second)
    third.rounds(1).end()


def _stillborn(code: RunCode, promises: Promises, prompt: bool) -> None:
    """Nobody but the third says how long the first journal was."""
    first = Life.begin(code, promises, prompt=prompt).rounds(2)
    first.settle()
    code.journal.Journal(RUN, 2).close()
    third = Life.resume(code, promises, prompt=prompt)
    haunt(first)
    third.rounds(1).end()


def measured(fence: int) -> dict[str, Any]:
    """What a round's record says."""
    return {"fence": fence, "step": 10 * fence, "train_loss": 0.5, "losses": [0.5]}


def haunt(old: Life) -> None:
    """What somebody writes who was succeeded: as if it had come by the same fence once more."""
    kinds, fence = old.code.journal.RecordKind, old.promises.past.needed[-1].fence
    late = {"file": "late.pt", "length": 1, "crc": 1, "algorithm": "crc32c", "fence": fence, "step": 20}
    late |= {"generation": NOBODY, "weights_crc32c": 0, "topology_digest": "", "seconds": 0.0}
    old.journal.write_many(
        [
            (kinds.CHECKPOINT_COMMITTED, late),
            (kinds.ROUND_ENDED, measured(fence) | {"generation": NOBODY}),
            (kinds.CHECKPOINT_BEGUN, {"file": "late.pt", "fence": fence}),
        ]
    )


def _rotten(code: RunCode, promises: Promises, prompt: bool) -> None:
    """The newest checkpoint rots, before the run is gone on with and before it is taken back."""
    Life.begin(code, promises, prompt=prompt).rounds(3).end()
    rot(promises)
    life = Life.resume(code, promises, prompt=prompt).rounds(2)
    life.settle()
    rot(promises)
    life.roll_back(fast=False)
    life.rounds(2).end()


def _all_rotten(code: RunCode, promises: Promises, prompt: bool) -> None:
    """Nothing is left but fence 0."""
    Life.begin(code, promises, prompt=prompt).rounds(3).end()
    rot(promises, 1)
    rot(promises, 2)
    Life.resume(code, promises, prompt=prompt).rounds(2).end()


def rot(promises: Promises, from_the_end: int = 1) -> None:
    """Flip a bit of the newest checkpoint, or of an older one."""
    file = promises.past.needed[-from_the_end].file
    HERE.disk.damage(f"run/checkpoints/{file}")
    promises.become(rotten=promises.now.rotten | {file})


SCENARIOS = (
    Scenario("fences, committed at once", _fences),
    Scenario("fences, committed in the next round", _fences, prompt=False),
    Scenario("fences, written in the next round", _fences, writes_at_once=False, prompt=False),
    Scenario("taken back, committed at once", _taken_back),
    Scenario("taken back, written in the next round", _taken_back, writes_at_once=False, prompt=False),
    Scenario("taken back further", _taken_back_further),
    Scenario("not taken back", _not_taken_back, writes_at_once=False, prompt=False, planted=True),
    Scenario("died early", _died_early, prompt=False),
    Scenario("died in a save", _died_in_a_save, prompt=False),
    Scenario("outlived", _outlived),
    Scenario("stillborn", _stillborn),
    Scenario("rotten", _rotten),
    Scenario("all rotten", _all_rotten),
)


# -- what must hold --------------------------------------------------------------------------------------------------


def look(code: RunCode, promise: Promise, loaded: set[Commits]) -> bool:
    """Read the run on the disk that is `HERE` and load what it would go on from.

    Args:
        loaded: What this code has loaded already, undamaged: files that are the same to the bit are not loaded again.

    Returns:
        Whether there is a run.

    Raises:
        Broken: the promise was not kept.
    """
    if not run_file(RUN).exists():
        demand(not promise.started, "there is no run any more")
        return False
    past = code.history.read_past(RUN)
    told = tuple(map(one, past.commits))
    promise.judge(told)
    _judge_rounds(code.journal, past.entries, told)
    late = [each for each in code.history.committed(past.entries) if each.generation == NOBODY]
    demand(not late, f"a dead writer's COMMIT counts: {late}")
    sound = [each for each in told if each.file not in promise.rotten]
    for each in sound:
        _judge_file(each)
    for file in promise.aside:
        demand((FOLDER / "quarantine" / file).exists(), f"{file} was put aside and is not there")
    demand(not told or bool(sound), "nothing is left to go on from")
    if told and (len(sound) < len(told) or told not in loaded):
        _judge_restore(code, past.commits, sound)
        loaded.add(told)
    return True


def _judge_rounds(journal: ModuleType, entries: Sequence[Any], told: Commits) -> None:
    rounds = [entry.body for entry in entries if entry.kind is journal.RecordKind.ROUND_ENDED]
    fences = [each["fence"] for each in rounds]
    demand(fences == list(range(1, len(fences) + 1)), f"rounds that count: {rounds}")
    demand(all(each["generation"] != NOBODY for each in rounds), f"a dead writer's round counts: {rounds}")
    demand(not told or len(rounds) >= told[-1].fence, f"{told[-1:]} was committed, and its rounds are gone: {rounds}")


def _judge_file(each: One) -> None:
    data = (FOLDER / each.file).read_bytes() if (FOLDER / each.file).exists() else b""
    whole = len(data) == each.length and google_crc32c.value(data) == each.crc
    demand(whole, f"{each} is not what was committed: {len(data)} bytes")


def _judge_restore(code: RunCode, commits: Sequence[CheckpointWritten], sound: list[One]) -> None:
    found = {each: (FOLDER / each.file).read_bytes() for each in map(one, commits) if (FOLDER / each.file).exists()}
    checkpoints = checkpoints_of(code, None, commits)
    kept, newest = checkpoints.load_latest(), sound[-1]
    demand(kept.fence == newest.fence, f"restored fence {kept.fence}, the newest that loads is {newest}")
    demand(kept.states == state_of(newest.fence, newest.generation), f"{newest} holds {kept.states}")
    weight = kept.host.tensors["weight"].tolist()
    demand(weight == [float(newest.fence)] * 3, f"{newest} holds {weight}")
    left = tuple(map(one, checkpoints.committed))
    demand(
        left == tuple(each for each in map(one, commits) if each.fence <= newest.fence), f"{left} are said to be kept"
    )
    for each, data in found.items():
        rotten = each.fence > newest.fence
        place = FOLDER / "quarantine" / each.file if rotten else FOLDER / each.file
        demand(place.exists() and place.read_bytes() == data, f"{each} is not at {place}")
        demand(not rotten or not (FOLDER / each.file).exists(), f"{each} was not put aside")


def works(code: RunCode) -> None:
    """What no mutant may break: without crash, damage or rollback a run is gone on with from where it was."""
    promises = Promises()
    Life.begin(code, promises, judging=False).rounds(3).end()
    Life.resume(code, promises, judging=False).rounds(2).end()
    past = code.history.read_past(RUN)
    found = checkpoints_of(code, None, past.commits).load_latest()
    demand((found.fence, past.commits[-1].fence) == (5, 5), f"it is at fence {found.fence}")
    demand(len(journals(RUN)) == 2, "it has other generations")
