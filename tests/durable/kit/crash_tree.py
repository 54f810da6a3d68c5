"""`CrashDisk` with folders, and paths on it, so that the code of a whole run works on a disk that may crash.

    folders     a folder is a name like any other: what was made in it is gone if its own name was lost
    renames     one from a folder to another is whole until one of the two is synced, then each half goes by itself
    temporary   what is under a name that ends with .tmp is never read: it counts once, whatever of it was kept

`in_memory` puts every call of `Disk`, whoever makes it, on the disk that `HERE` names.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import random
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from types import SimpleNamespace

from crash_disk import TEARS, Choice, CrashDisk, Inode, State

from esper.durable.files import Disk

ROOT = "/d"
HERE = SimpleNamespace(disk=None)
"""What `CrashPath` and, within `in_memory`, every `Disk` works on."""

_CALLS = [name for name, call in vars(Disk).items() if callable(call) and not name.startswith("_")]


@contextmanager
def in_memory() -> Iterator[None]:
    """While it lasts the system's disk is not touched by anything that goes through `Disk`."""
    before = {name: getattr(Disk, name) for name in _CALLS}
    for name in _CALLS:
        setattr(Disk, name, _passed_on(name))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(Disk, name, call)
        HERE.disk = None


def _passed_on(name: str) -> object:
    return lambda _self, *given, **named: getattr(HERE.disk, name)(*given, **named)


class CrashTree(CrashDisk):
    """See above. Keys of its states are paths below the root; those of folders end with a slash."""

    def __init__(self, contents: State | None = None, *, stale: bytes = b"") -> None:
        super().__init__(contents, stale=stale)
        self.only_temporary = False
        """Whether the last change was one of bytes that are never read."""
        self._budget = 0

    def open(self, path: PurePosixPath, flags: int) -> int:
        return super().open(_Key(path), flags)

    def reader(self, descriptor: int, *, owned: bool = False) -> io.BytesIO:
        del owned
        return _Readable(bytes(self._inode(descriptor).seen))

    def exists(self, path: PurePosixPath) -> bool:
        key = key_of(path)
        return super().exists(_Key(path)) or f"{key}/" in self.names_seen or not key

    def size_of(self, descriptor: int, path: PurePosixPath) -> int:
        return super().size_of(descriptor, _Key(path))

    def names(self, folder: PurePosixPath) -> list[str]:
        self._live()
        inside = [name for name in self.names_seen if _folder_of(name) == key_of(folder)]
        return [name.rstrip("/").rpartition("/")[2] for name in inside]

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        inode = self._inode(descriptor)
        self.only_temporary = all(name.endswith(".tmp") for name, one in self.names_seen.items() if one is inode)
        written = super().write(descriptor, data, offset)
        self.only_temporary = False
        return written

    def rename(self, old: PurePosixPath, new: PurePosixPath) -> None:
        super().rename(_Key(old), _Key(new))

    def link(self, old: PurePosixPath, new: PurePosixPath) -> None:
        super().link(_Key(old), _Key(new))

    def unlink(self, path: PurePosixPath) -> None:
        super().unlink(_Key(path))

    def sync_folder(self, path: PurePosixPath) -> None:
        folder = key_of(path)
        with self._change("sync_folder"):
            inside = {name: inode for name, inode in self.names_seen.items() if _folder_of(name) == folder}
            others = {name: inode for name, inode in self.names_durable.items() if _folder_of(name) != folder}
            self.names_durable = {**others, **inside}
            pending = [
                {name: inode for name, inode in change.items() if _folder_of(name) != folder}
                for change in self.names_pending
            ]
            self.names_pending = [change for change in pending if change]

    def make_folder(self, path: PurePosixPath) -> None:
        key = f"{key_of(path)}/"
        self._live()
        if key[:-1] in self.names_seen:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        if key not in self.names_seen and key != "/":
            with self._change("make_folder"):
                self._rename({key: Inode()})

    def damage(self, name: str, at: int | None = None) -> bytes:
        """Flip a bit of a file that is durable, by default in its middle. Returns what it then holds."""
        inode = self.names_seen[name]
        assert not inode.changes, "it is not durable yet"
        inode.seen[len(inode.seen) // 2 if at is None else at] ^= 1
        inode.base = bytes(inode.seen)
        return inode.base

    def states(self, rng: random.Random, budget: int) -> Iterator[State]:
        """As `CrashDisk.states`, but every state without a torn write, and of those with one as many as `budget`."""
        self._budget = budget
        return super().states(rng, sys.maxsize)

    def _plans(self, rng: random.Random) -> Iterator[tuple[dict[str, Inode], Inode | None, list[Choice], Choice]]:
        torn = []
        for plan in super()._plans(rng):
            if any(how in TEARS for how, _ in plan[2]):
                torn.append(plan)
            else:
                yield plan
        yield from torn if len(torn) <= self._budget else rng.sample(torn, self._budget)

    def _name_sets(self, rng: random.Random) -> Iterator[dict[str, Inode]]:
        for names in super()._name_sets(rng):
            real = {inode for name, inode in names.items() if not name.endswith(".tmp")}
            yield {
                name: inode if inode in real else Inode(b"", [], bytearray())
                for name, inode in names.items()
                if all(f"{folder}/" in names for folder in _folders_of(name))
            }


class CrashPath(PurePosixPath):
    """A path on the disk that `HERE` names; of what a path can do, that which the code of a run asks of it."""

    def exists(self) -> bool:
        return HERE.disk.exists(self)

    def is_file(self) -> bool:
        return key_of(self) in HERE.disk.names_seen

    def is_dir(self) -> bool:
        return self.exists() and not self.is_file()

    def is_symlink(self) -> bool:
        return False  # this disk has no links

    def iterdir(self) -> Iterator[CrashPath]:
        return (self / name for name in HERE.disk.names(self))

    def stat(self) -> os.stat_result:
        kind, size = (stat.S_IFDIR, 0) if self.is_dir() else (stat.S_IFREG, len(self._seen()))
        return os.stat_result((kind, 0, 0, 1, 0, 0, size, 0, 0, 0))

    def read_bytes(self) -> bytes:
        return bytes(self._seen())

    def glob(self, pattern: str) -> Iterator[CrashPath]:
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        assert exist_ok
        assert not parents
        HERE.disk.make_folder(self)

    def unlink(self, missing_ok: bool = False) -> None:
        assert missing_ok
        HERE.disk.unlink(self)

    def rename(self, new: CrashPath) -> CrashPath:
        HERE.disk.rename(self, new)
        return new

    def _seen(self) -> bytearray:
        HERE.disk._live()
        return HERE.disk._named(_Key(self)).seen


class _Key:
    """A path as `CrashDisk`, which has one folder, looks at it: its name is all of it."""

    def __init__(self, path: PurePosixPath) -> None:
        self.name, self._path = key_of(path), path

    def __str__(self) -> str:
        return str(self._path)


class _Readable(io.BytesIO):
    """A file whose descriptor can be mapped, as torch does."""

    _descriptor: int | None = None

    def fileno(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.memfd_create("crash-tree")
            os.write(self._descriptor, self.getbuffer())
        return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        super().close()


def key_of(path: PurePosixPath) -> str:
    """The path below the root; "" for the root."""
    return str(path)[len(ROOT) + 1 :]


def _folder_of(name: str) -> str:
    return name.rstrip("/").rpartition("/")[0]


def _folders_of(name: str) -> Iterator[str]:
    while name := _folder_of(name):
        yield name
