"""A disk in memory that knows what a crash may leave of it. It runs the real code; it judges nothing.

The model is harsher than any file system in use: what was not synced may be kept or lost in every combination.

    file data   each write since the last sync of its file is lost, kept, or torn at any byte; where it was torn the
                file ends, or holds zeros, or what an earlier log left on those blocks; the part kept may be the later
    lengths     a truncation is durable by fsync only, not by fdatasync; until then it is lost or kept
    names       each creation, rename, link and removal since the last sync of the folder is lost or kept by itself; a
                rename is whole; no fsync of a file makes its name durable
    failed sync what it should have written is never written by a later sync of the file, though that reports success

One folder; descriptors and locks end with the process (`end_process`), its unsynced writes do not.
"""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from esper.durable.files import Disk

FOLDER = Path("/d")
UNVARIED = frozenset({"lease", "reserve"})
"""Files whose bytes mean nothing to the code; to vary them would only swell the counts."""

LOST, KEPT = ("lost", 0), ("kept", 0)
TEARS = ("cut", "zeros behind", "stale behind", "zeros before", "stale before")
PENDING, DURABLE, NEVER = "pending", "durable", "never"

Choice = tuple[str, int]
State = dict[str, bytes]


class Killed(BaseException):
    """The process is dead: every system call raises this until `end_process`."""


@dataclass(eq=False)
class Change:
    """A write of `data` at `offset`, or with no data a truncation to `offset`."""

    offset: int
    data: bytes | None
    status: str = PENDING


@dataclass(eq=False)
class Inode:
    """A file: what is surely on the disk, what was done since, and what the process sees."""

    base: bytes = b""
    changes: list[Change] = field(default_factory=list)
    seen: bytearray = field(default_factory=bytearray)

    def do(self, change: Change) -> None:
        self.changes.append(change)
        _apply(self.seen, change, KEPT, b"")

    def sync(self, *, lengths: bool) -> None:
        for change in self.changes:
            if change.status == PENDING and (lengths or change.data is not None):
                change.status = DURABLE
        while self.changes and self.changes[0].status == DURABLE:
            self.base = after(self.base, [self.changes.pop(0)], [], b"")

    def unsure(self) -> list[int]:
        return [n for n, change in enumerate(self.changes) if change.status != DURABLE]


class CrashDisk(Disk):
    """`Disk` on dictionaries.

    Attributes:
        watch: Called after every change.
        faults: Call -> how many more of it do well before one fails.
        kill_at: The change instead of which the process dies.
        done: Changes so far.
    """

    def __init__(self, contents: State | None = None, *, stale: bytes = b"") -> None:
        self.stale = stale
        self.names_seen = {name: Inode(data, [], bytearray(data)) for name, data in (contents or {}).items()}
        self.names_durable = dict(self.names_seen)
        self.names_pending: list[dict[str, Inode | None]] = []
        self.watch: Callable[[], None] | None = None
        self.faults: dict[str, int] = {}
        self.kill_at: int | None = None
        self.bytes_per_write: int | None = None
        self.done = 0
        self._dead = False
        self._descriptors: dict[int, Inode] = {}
        self._locks: dict[Inode, int] = {}
        self._next = 3

    # -- the calls of Disk ------------------------------------------------------------------------------------------

    def open(self, path: Path, flags: int) -> int:
        self._live()
        inode = self.names_seen.get(path.name)
        if inode is None and not flags & os.O_CREAT:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        if inode is not None and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        if inode is None:
            with self._change("open"):
                inode = Inode()
                self._rename({path.name: inode})
        self._next += 1
        self._descriptors[self._next] = inode
        return self._next

    def reader(self, descriptor: int, *, owned: bool = False) -> io.BytesIO:
        del owned
        return io.BytesIO(self._inode(descriptor).seen)

    def exists(self, path: Path) -> bool:
        self._live()
        return path == FOLDER or path.name in self.names_seen

    def make_folder(self, path: Path) -> None:
        assert path == FOLDER

    def size_of(self, descriptor: int, path: Path) -> int:
        if self.names_seen.get(path.name) is not self._inode(descriptor):
            raise FileNotFoundError(errno.ENOENT, "another file was put in its place", str(path))
        return len(self._inode(descriptor).seen)

    def names(self, folder: Path) -> list[str]:
        del folder
        self._live()
        return list(self.names_seen)

    def lock(self, descriptor: int) -> None:
        if self._locks.setdefault(self._inode(descriptor), descriptor) != descriptor:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked")

    def unlock(self, descriptor: int) -> None:
        inode = self._inode(descriptor)
        if self._locks.get(inode) == descriptor:
            del self._locks[inode]

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        part = bytes(data[: self.bytes_per_write])
        with self._change("write"):
            self._inode(descriptor).do(Change(offset, part))
        return len(part)

    def allocated(self, descriptor: int) -> int:
        return len(self._inode(descriptor).seen)

    def allocate(self, descriptor: int, length: int) -> None:
        """Zeros behind the end: this disk has no holes."""
        inode = self._inode(descriptor)
        if length > len(inode.seen):
            with self._change("allocate"):
                inode.do(Change(len(inode.seen), bytes(length - len(inode.seen))))

    def truncate(self, descriptor: int, length: int) -> None:
        with self._change("truncate"):
            self._inode(descriptor).do(Change(length, None))

    def fdatasync(self, descriptor: int) -> None:
        self._sync(descriptor, "fdatasync", lengths=False)

    def fsync(self, descriptor: int) -> None:
        self._sync(descriptor, "fsync", lengths=True)

    def close(self, descriptor: int) -> None:
        inode = self._inode(descriptor)
        del self._descriptors[descriptor]
        if self._locks.get(inode) == descriptor:
            del self._locks[inode]

    def rename(self, old: Path, new: Path) -> None:
        with self._change("rename"):
            self._rename({old.name: None, new.name: self._named(old)})

    def link(self, old: Path, new: Path) -> None:
        self._live()
        if new.name in self.names_seen:
            raise FileExistsError(errno.EEXIST, "File exists", str(new))
        with self._change("link"):
            self._rename({new.name: self._named(old)})

    def unlink(self, path: Path) -> None:
        self._live()
        if path.name in self.names_seen:
            with self._change("unlink"):
                self._rename({path.name: None})

    def sync_folder(self, path: Path) -> None:
        del path
        with self._change("sync_folder"):
            self.names_pending.clear()
            self.names_durable = dict(self.names_seen)

    # -- what the tests do with it ----------------------------------------------------------------------------------

    def end_process(self) -> None:
        """What a SIGKILL does: descriptors and locks go, the kernel's copy of the files stays."""
        self._descriptors.clear()
        self._locks.clear()
        self._dead, self.kill_at = False, None

    def contents(self) -> State:
        """What a process sees."""
        return {name: bytes(inode.seen) for name, inode in self.names_seen.items()}

    def states(self, rng: random.Random, budget: int) -> Iterator[State]:
        """What a crash now may leave: all of it if that is no more than `budget`, else as many drawn by `rng`."""
        plans = list(self._plans(rng))
        if len(plans) > budget:
            plans = rng.sample(plans, budget)
        for names, focus, choices, others in plans:
            yield {
                name: bytes(inode.seen)
                if name in UNVARIED
                else after(inode.base, inode.changes, choices, self.stale)
                if inode is focus
                else after(inode.base, inode.changes, _all(inode, others), self.stale)
                for name, inode in names.items()
            }

    def _plans(self, rng: random.Random) -> Iterator[tuple[dict[str, Inode], Inode | None, list[Choice], Choice]]:
        for names in self._name_sets(rng):
            dirty = [inode for name, inode in names.items() if name not in UNVARIED and inode.unsure()]
            if not dirty:
                yield names, None, [], KEPT
            for focus in dirty:
                for choices in _choices(focus, rng):
                    yield names, focus, choices, KEPT
                    if len(dirty) > 1:
                        yield names, focus, choices, LOST

    def _name_sets(self, rng: random.Random) -> Iterator[dict[str, Inode]]:
        for kept in _subsets(len(self.names_pending), rng):
            names = dict(self.names_durable)
            for change in (change for change, keep in zip(self.names_pending, kept, strict=True) if keep):
                _rename(names, change)
            yield names

    # -- inside -----------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        if self._dead:
            raise Killed

    def _inode(self, descriptor: int) -> Inode:
        self._live()
        return self._descriptors[descriptor]

    def _named(self, path: Path) -> Inode:
        if path.name not in self.names_seen:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return self.names_seen[path.name]

    def _rename(self, change: dict[str, Inode | None]) -> None:
        self.names_pending.append(change)
        _rename(self.names_seen, change)

    def _sync(self, descriptor: int, call: str, *, lengths: bool) -> None:
        inode = self._inode(descriptor)
        with self._change(call, before=True, failed=lambda: _give_up(inode)):
            inode.sync(lengths=lengths)

    def _change(self, call: str, *, before: bool = False, failed: Callable[[], None] = lambda: None) -> _Step:
        return _Step(self, call, before, failed)


class _Step:
    """One call that changes something: the process may die instead, and it may fail, before or after its effect."""

    def __init__(self, disk: CrashDisk, call: str, before: bool, failed: Callable[[], None]) -> None:
        self._disk, self._call, self._before, self._failed = disk, call, before, failed

    def __enter__(self) -> None:
        disk = self._disk
        disk._live()
        if disk.kill_at == disk.done:
            disk._dead = True
            raise Killed
        disk.done += 1
        if self._before:
            self._fail()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if kind is not None:
            return
        if self._disk.watch is not None:
            self._disk.watch()
        if not self._before:
            self._fail()

    def _fail(self) -> None:
        faults = self._disk.faults
        if self._call in faults:
            faults[self._call] -= 1
            if faults[self._call] < 0:
                del faults[self._call]
                self._failed()
                raise OSError(errno.EIO, f"planted in {self._call}")


def _rename(names: dict[str, Inode], change: dict[str, Inode | None]) -> None:
    for name, inode in change.items():
        if inode is not None:
            names[name] = inode
        elif name in names:
            del names[name]


def after(base: bytes, changes: list[Change], choices: list[Choice], stale: bytes) -> bytes:
    """The file's bytes if of its `changes` that are not durable the first went as the first of `choices` says, ..."""
    content, turn = bytearray(base), iter(choices)
    for change in changes:
        _apply(content, change, KEPT if change.status == DURABLE else next(turn), stale)
    return bytes(content)


def _apply(content: bytearray, change: Change, choice: Choice, stale: bytes) -> None:
    how, at = choice
    if how == "lost":
        return
    start, data = change.offset, change.data
    if data is None:
        if len(content) > start:
            del content[start:]
        else:
            content.extend(bytes(start - len(content)))
        return
    if len(content) < start:
        content.extend(bytes(start - len(content)))
    end = start + len(data)
    if how == "kept":
        content[start:end] = data
        return
    if how == "cut":
        content[start : start + at] = data[:at]
        return
    old = bytes(content[start:end])
    filler = stale[start:end] if how.startswith("stale") else b""
    hole = old + filler[len(old) :]  # blocks that the file had already keep what they held
    hole += bytes(len(data) - len(hole))
    content[start:end] = data[:at] + hole[at:] if how.endswith("behind") else hole[:at] + data[at:]


def _choices(inode: Inode, rng: random.Random) -> Iterator[list[Choice]]:
    """Ways in which the unsure changes of a file may go: every one lost or kept, and one of them torn at each byte."""
    unsure = [inode.changes[n] for n in inode.unsure()]
    for kept in _subsets(len(unsure), rng):
        yield [KEPT if keep else LOST for keep in kept]
    for n, change in enumerate(unsure):
        if change.data is None or len(change.data) < 2:
            continue
        around = {(KEPT, KEPT), (KEPT, LOST), (LOST, LOST), (LOST, KEPT)} if len(unsure) > 1 else {(KEPT, KEPT)}
        for earlier, later in sorted(around):
            for how, at in product(TEARS, range(1, len(change.data))):
                yield [earlier] * n + [(how, at)] + [later] * (len(unsure) - n - 1)


def _subsets(count: int, rng: random.Random) -> list[tuple[bool, ...]]:
    """All subsets of up to 5 things; of more: all, none, the first few, all but one, only one, and 32 drawn."""
    if count <= 5:
        return list(product((True, False), repeat=count))
    found = {tuple(n < first for n in range(count)) for first in range(count + 1)}
    found |= {tuple((n == one) is alone for n in range(count)) for one in range(count) for alone in (True, False)}
    found |= {tuple(rng.random() < 0.5 for _ in range(count)) for _ in range(32)}
    return sorted(found)


def _all(inode: Inode, choice: Choice) -> list[Choice]:
    return [choice] * len(inode.unsure())


def _give_up(inode: Inode) -> None:
    for change in inode.changes:
        if change.status == PENDING:
            change.status = NEVER
