"""What must hold of a run that no crash has hurt: what is missing is missed, and what cannot be read now is left alone.

Each check takes one version of the modules, begins a run on a disk in memory, and raises if it does not hold.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import PurePosixPath

from checks import refused
from crash_tree import HERE, CrashTree, in_memory
from run_code import RunCode
from run_lives import FOLDER, RUN, Life, Past, Promises, checkpoints_of, one
from workloads import demand

from esper.durable.log import scan
from esper.errors import CheckpointCorrupt, StoreCorrupt
from esper.leyline.checkpoint_record import CheckpointWritten


def _three_fences(code: RunCode) -> tuple[CheckpointWritten, ...]:
    """Begin a run on a new disk, and end its process. Returns what it committed."""
    HERE.disk = CrashTree()
    Life.begin(code, Promises()).rounds(2).end()
    commits: tuple[CheckpointWritten, ...] = code.history.read_past(RUN).commits
    return commits


def the_newest_is_told_even_if_it_is_missing(code: RunCode) -> None:
    """Else a run whose checkpoints are gone would be begun anew in silence."""
    with in_memory():
        commits = _three_fences(code)
        HERE.disk.unlink(FOLDER / commits[-1].file)
        found = code.history.read_past(RUN).commits
        demand(found == commits, f"told: {found}")
        kept = checkpoints_of(code, None, found).load_latest()
        demand(kept.fence == commits[-2].fence, f"restored: fence {kept.fence}")


def what_the_system_cannot_read_is_left_where_it_is(code: RunCode) -> None:
    """And if that is no want of this machine's, but of the file's own blocks, the one before it is taken."""
    with in_memory():
        commits = _three_fences(code)
        disk, newest = HERE.disk, commits[-1].file
        trouble = errno.EMFILE

        def failing(path: PurePosixPath, flags: int) -> int:
            if path.name == newest:
                raise OSError(trouble, "planted")
            return CrashTree.open(disk, path, flags)

        disk.open = failing
        refused(CheckpointCorrupt, lambda: checkpoints_of(code, None, commits).load_latest())
        trouble = errno.EIO
        found = checkpoints_of(code, None, commits).load_latest()
        demand(found.fence == commits[-2].fence, "a bad block is not passed over")
        del disk.open
        demand((FOLDER / newest).exists(), "it was put aside")
        demand(checkpoints_of(code, None, commits).load_latest().fence == commits[-1].fence, "it does not load later")


def a_journal_that_is_missing_is_missed(code: RunCode) -> None:
    with in_memory():
        _three_fences(code)
        promises = Promises()
        promises.become(started=True)
        past = code.history.read_past(RUN)
        code.journal.Journal(RUN, past.generation + 1).close()
        Life.resume(code, promises).end()
        demand([one(each).fence for each in code.history.read_past(RUN).commits] == [0, 1, 2], "it is not what it was")
        HERE.disk.unlink(RUN / "journal-2.log")
        refused(StoreCorrupt, lambda: code.history.read_past(RUN))


def what_retention_left_is_told_even_if_it_is_missing(code: RunCode) -> None:
    """Else a run would lose its way back in silence."""
    for lost in (0, 1):
        with in_memory():
            commits = _three_fences(code)
            HERE.disk.unlink(FOLDER / commits[lost].file)
            found = code.history.read_past(RUN).commits
            demand(found == commits, f"fence {lost} is missing, told: {found}")
            promises = Promises()
            promises.become(started=True, pasts=(Past(tuple(map(one, commits))),))
            Life.resume(code, promises, judging=False).rounds(3).end()  # nor does it hinder anybody
            left = [each.fence for each in code.history.read_past(RUN).commits]
            demand(left == [0, 4, 5], f"kept: {left}")


def what_was_passed_over_does_not_count_again(code: RunCode) -> None:
    """A checkpoint that the disk could not read stays where it is, and is none of the run's any more."""
    with in_memory():
        HERE.disk = disk = CrashTree()
        life = Life.begin(code, Promises(), judging=False).rounds(2)

        def failing(path: PurePosixPath, flags: int) -> int:
            if path.name == "fence-2-g1.pt":
                raise OSError(errno.EIO, "planted")
            return CrashTree.open(disk, path, flags)

        disk.open = failing
        life.roll_back(fast=False)
        del disk.open
        fences = [each.fence for each in code.history.read_past(RUN).commits]
        demand(fences == [0, 1], f"it goes on from fence 1; told: {fences}")


def rot_in_what_a_succeeded_journal_said_last_is_damage(code: RunCode) -> None:
    """While nobody had gone on from it, it might have been an append that was cut short."""
    with in_memory():
        commits = _three_fences(code)
        demand(not code.history.read_past(RUN).damages, "it is damaged from the beginning")
        promises = Promises()
        promises.become(started=True, pasts=(Past(tuple(map(one, commits))),))
        Life.resume(code, promises).rounds(1).end()
        frame = scan(RUN / "journal-1.log").frames[-1]
        HERE.disk.damage("run/journal-1.log", (frame.offset + frame.end) // 2)
        found = code.history.read_past(RUN)
        demand(found.damaged, f"it is told as {found.damages}")


RUN_CHECKS: tuple[Callable[[RunCode], None], ...] = (
    the_newest_is_told_even_if_it_is_missing,
    what_the_system_cannot_read_is_left_where_it_is,
    a_journal_that_is_missing_is_missed,
    what_retention_left_is_told_even_if_it_is_missing,
    what_was_passed_over_does_not_count_again,
    rot_in_what_a_succeeded_journal_said_last_is_damage,
)
