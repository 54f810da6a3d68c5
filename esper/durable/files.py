"""Durable writes of whole files, and a lock that excludes other processes from a folder.

Every system call of this room goes through `Disk`, so that a test can record, interrupt or fail each of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from esper.errors import RunDirectoryError, StoreCorrupt, StoreWriteFailed
from esper.ground.closing import at_the_end, noted_on

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers that mean a full disk or an exhausted quota."""


_write_trap: Callable[[int, memoryview, int], int] | None = None


def set_write_trap(trap: Callable[[int, memoryview, int], int] | None) -> None:
    """Let a function with the arguments of `os.pwrite` make every write of this process. None: the system makes them.

    Only injected faults use it.
    """
    global _write_trap
    _write_trap = trap


class Disk:
    """The system calls of this room, one per method. Each raises `OSError` if the system call fails."""

    def open(self, path: Path, flags: int) -> int:
        """Open a regular file. For writing, a symbolic link is refused, because its target may be any file of the
        user."""
        if flags & (os.O_RDWR | os.O_WRONLY):
            flags |= os.O_NOFOLLOW
        descriptor = os.open(
            path, flags | os.O_NONBLOCK, 0o666
        )  # without this flag, the opening of a pipe of this name would block
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return descriptor

    def reader(self, descriptor: int, *, owned: bool = False) -> BinaryIO:
        """Return a reader from the descriptor's present position. Closing it closes the descriptor only if `owned`."""
        return open(descriptor, "rb", closefd=owned)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def size_of(self, descriptor: int, path: Path) -> int:
        """Check that `path` still names the open file, and return its size in bytes.

        Raises:
            FileNotFoundError: the file was removed, moved or replaced since it was opened.
        """
        held, named = os.fstat(descriptor), os.stat(path)
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino):
            raise FileNotFoundError(errno.ENOENT, "another file was put in its place", str(path))
        return held.st_size

    def names(self, folder: Path) -> list[str]:
        return os.listdir(folder)

    def lock(self, descriptor: int) -> None:
        """Take the exclusive lock, or raise `BlockingIOError` at once if another process has it. The system releases
        the lock when the process ends.
        """
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(self, descriptor: int) -> None:
        """Release the lock, even if a forked child has a copy of the descriptor."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write at `offset`. Return the number of bytes written, which may be less than all of `data`."""
        return os.pwrite(descriptor, data, offset) if _write_trap is None else _write_trap(descriptor, data, offset)

    def allocated(self, descriptor: int) -> int:
        """Return the number of bytes on the disk that the file has. The holes of a sparse file are not counted."""
        return os.fstat(descriptor).st_blocks * 512

    def allocate(self, descriptor: int, length: int) -> None:
        """Give the first `length` bytes of the file blocks on the disk, also where the file has holes. The file grows
        to `length` bytes if it was shorter."""
        os.posix_fallocate(descriptor, 0, length)

    def truncate(self, descriptor: int, length: int) -> None:
        os.ftruncate(descriptor, length)

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Give `old` a second name. Unlike a rename, this call fails if the new name exists."""
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


DISK = Disk()


def write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int, disk: Disk) -> None:
    """Write all of `data` at `offset`. Short writes are continued. The data is not durable before a sync.

    Raises:
        OSError: the system refused. Any prefix of `data` may have been written.
    """
    rest = memoryview(data)
    while rest:
        written = disk.write(descriptor, rest, offset)
        if written == 0:
            raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
        rest, offset = rest[written:], offset + written


def read_small(path: Path, *, limit_bytes: int = 2**24) -> bytes:
    """Read a whole file that must be small.

    Raises:
        OSError: the system refused, or it is not a regular file.
        StoreCorrupt: the file is larger than `limit_bytes`. No more than `limit_bytes` were read.
    """
    descriptor = DISK.open(path, os.O_RDONLY)
    with DISK.reader(descriptor, owned=True) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise StoreCorrupt(str(path), f"is larger than {limit_bytes} bytes")
    return content


def sync_folder(path: Path, *, disk: Disk = DISK) -> None:
    """Make the names in the folder `path` durable.

    Raises:
        StoreWriteFailed: the sync failed. A crash may undo earlier creations and removals of names.
    """
    try:
        disk.sync_folder(path)
    except OSError as error:
        raise StoreWriteFailed(str(path), "sync of the folder") from error


def sync_file(path: Path, *, disk: Disk = DISK) -> None:
    """Make the content of a file durable. If its writer was killed before a sync, the content may be only in the
    kernel's cache.

    Raises:
        StoreWriteFailed: the sync failed. A crash may lose the content.
    """
    try:
        descriptor = disk.open(path, os.O_RDWR)
        with at_the_end(lambda: disk.close(descriptor), "closing the file"):
            disk.fsync(descriptor)
    except OSError as error:
        raise StoreWriteFailed(str(path), "sync of the file") from error


def make_folders(path: Path, *, disk: Disk = DISK) -> None:
    """Make a folder and its missing parents, durably. Existing folders are left unchanged.

    Raises:
        StoreWriteFailed: the folder could not be made, or a crash may lose it.
    """
    try:
        if disk.exists(path):
            disk.make_folder(path)  # raises if `path` is a file
            return
        make_folders(path.parent, disk=disk)
        disk.make_folder(path)
        disk.sync_folder(path.parent)
    except OSError as error:
        raise StoreWriteFailed(str(path), "making the folder") from error


def remove_folder(path: Path) -> None:
    """Remove a folder and its contents, if it exists. Raises: OSError: a part of the folder could not be removed."""
    if path.exists():
        shutil.rmtree(path)


def atomic_write(path: Path, data: bytes, *, replace: bool = True, disk: Disk = DISK) -> None:
    """Write `data` to the file `path`, durably. A crash at any moment leaves the whole old file or the whole new file.

    Args:
        replace: If false and `path` exists, the error has the cause `FileExistsError`, and `path` is not changed.

    Raises:
        StoreWriteFailed: the write failed, and the old file is still at `path`. If only the sync of the folder failed,
            the new file is at `path`. A temporary file is left only if its removal failed.
    """
    place = disk.rename if replace else disk.link
    try:
        publish(path, lambda descriptor: write_all(descriptor, data, 0, disk), place, disk)
    except OSError as error:
        raise StoreWriteFailed(str(path), "atomic write") from error


def publish(path: Path, fill: Callable[[int], None], place: Callable[[Path, Path], None], disk: Disk) -> None:
    """Write a temporary file with `fill(descriptor)`, sync it, and move it to `path` with `place(temporary, path)`.

    Raises:
        OSError: the system refused; see `atomic_write`.
        Exception: `fill` raised it. `path` is not changed.
    """
    # in the same folder, because a rename is atomic there
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with at_the_end(lambda: disk.unlink(temporary), "removing the temporary file"):
        _fill_synced(temporary, fill, disk)
        place(temporary, path)
    disk.sync_folder(path.parent)


def _fill_synced(path: Path, fill: Callable[[int], None], disk: Disk) -> None:
    descriptor = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with at_the_end(lambda: disk.close(descriptor), "closing the temporary file"):
        fill(descriptor)
        disk.fsync(descriptor)


class DirectoryLease:
    """The exclusive right to write in a folder. It is a lock on the file `lease`, which names the process that has it.

    The system releases the lock when that process ends, so a lease is never stale. The file is never removed, because
    otherwise two processes could lock two files of the same name. `what` is the name of the folder in errors.
    """

    def __init__(self, folder: Path, *, what: str = "run directory", disk: Disk = DISK) -> None:
        self._folder, self._what, self._disk = folder, what, disk
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lease, or fail at once. This method must not be called again before `release`.

        Raises:
            RunDirectoryError: another process has the lease (its pid and host are in the error), or the folder is
                missing or not writable.
        """
        assert self._descriptor is None, "acquire() was called twice"
        path = self._folder / "lease"
        try:
            descriptor = self._disk.open(path, os.O_RDWR | os.O_CREAT)
            try:
                self._take(descriptor)
            except BaseException as error:
                with noted_on(error, "closing the lease"):
                    self._disk.close(descriptor)
                raise
        except OSError as error:
            mend = f"it must exist and be writable: {error.strerror}"
            raise RunDirectoryError(self._what, str(self._folder), mend) from error
        self._descriptor = descriptor

    def _take(self, descriptor: int) -> None:
        try:
            self._disk.lock(descriptor)
        except BlockingIOError as error:
            with self._disk.reader(descriptor) as file:
                holder = file.read(512).decode(errors="replace").strip()
            holder = holder or "a process that gave no name yet"
            mend = f"in use by {holder}; wait for it, stop it, or choose another directory"
            raise RunDirectoryError(self._what, str(self._folder), mend) from error
        self._disk.truncate(descriptor, 0)
        write_all(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0, self._disk)

    def release(self) -> None:
        """Release the lease, if there is one.

        Raises:
            StoreWriteFailed: the system refused. The system releases the lock when the process ends.
        """
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            with at_the_end(lambda: self._disk.close(descriptor), "closing the lease"):
                self._disk.unlock(descriptor)
        except OSError as error:
            raise StoreWriteFailed(str(self._folder / "lease"), "release") from error

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with noted_on(error, "giving the lease back"):
            self.release()
