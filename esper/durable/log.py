"""A log of records in an append-only file. Undamaged records can be read even if other parts are damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from esper.durable.files import DISK, Disk, atomic_write, write_all
from esper.durable.log_format import (
    FILE_HEADER_BYTES,
    PAYLOAD_LIMIT_BYTES,
    Frame,
    LoadError,
    encode,
    image,
    read_header,
    walk,
)
from esper.errors import RunDirectoryError, StoreCorrupt, StoreWriteFailed
from esper.ground.closing import Closing, at_the_end, noted_on
from esper.ground.workplace import fixed


@dataclass(frozen=True, slots=True)
class Scan:
    """The content of a log: its records, the damage between the records, and the torn tail.

    A torn tail is an incomplete record that an interrupted append left at the end. Damage to the last record looks like
    a torn tail.
    """

    epoch: int
    frames: list[Frame]
    errors: list[LoadError]
    torn_tail: LoadError | None


class FramedLog(Closing):
    """A log that one thread of one process has open for appending. `FramedLog.open` makes it.

    Attributes:
        path: Absolute path of the file.
        errors: Damage between records that was found when the log was opened. The damage is still in the file.
        torn_tail: Damage after the last good record. The damaged part was cut off when the log was opened. None: there
            was no damage.
    """

    def __init__(self, path: Path, descriptor: int, first: int, disk: Disk) -> None:
        self.path = path
        self.errors: list[LoadError] = []
        self.torn_tail: LoadError | None = None
        self._disk, self._descriptor = disk, descriptor
        self._salt, self._end, self._next = 0, FILE_HEADER_BYTES, first
        self._closed = self._unsynced = False
        self._failure: BaseException | None = None

    @classmethod
    def open(cls, path: Path, *, epoch: int = 0, first: int = 0, disk: Disk = DISK) -> Self:
        """Create the log `path`, or reopen it for appending after its last good record. All its records are durable on
        return.

        Args:
            epoch: Number written when the log is created. To reopen the log, pass the same number.
            first: Sequence number of the next record if the log is empty.

        Raises:
            RunDirectoryError: another writer has the log open, or its epoch differs. The log was not changed.
            StoreCorrupt: the file is not a log that this program can read. The file was not changed.
            StoreWriteFailed: the file could not be created, locked, repaired or synced.
            ConfigError: the path is relative, and the working directory cannot be used.
        """
        path = fixed(path)  # made absolute, because the working directory may change while the log is open
        try:
            if not disk.exists(path):
                _create(path, epoch, disk)
            descriptor = disk.open(path, os.O_RDWR)
        except OSError as error:
            raise StoreWriteFailed(str(path), "open") from error
        log = cls(path, descriptor, first, disk)
        try:
            log._lock()
            log._recover(epoch)
        except BaseException as error:
            with noted_on(error, "closing the log"):
                log.close()
            raise
        return log

    def append(self, kind: int, payload: bytes) -> int:
        """Append one record. It is durable on return.

        Args:
            kind: A number 0..65535, whose meaning the caller defines.

        Returns:
            The record's sequence number. The first record of the log has the number `first`. The number rises by 1 with
            each record.

        Raises:
            StoreWriteFailed: the record was not acknowledged, and was removed from the file. The log stays usable,
                unless the sync or that removal failed; then every later append raises this error. The error is also
                raised if another program removed, replaced or changed the file since the last append. In that case
                nothing was written.
        """
        return self.append_many([(kind, payload)])[0]

    def append_many(self, records: Sequence[tuple[int, bytes]]) -> range:
        """Append `(kind, payload)` records with one sync. The records are durable on return. After a crash before the
        return, the log may have none, some or all of these records.

        Returns:
            Their sequence numbers.

        Raises:
            StoreWriteFailed: as by `append`, for all of `records`.
        """
        return self._append(records, synced=True)

    def append_unsynced(self, kind: int, payload: bytes) -> int:
        """Append one record without a sync. On return another process can read it, even if this process is killed.

        A crash of the system may lose or damage the record. This risk ends when another record was appended durably,
        `sync` returned, or the log was opened again. If the record is damaged and a later record is whole, the damage
        is reported as damage between records.

        Returns:
            Its sequence number.

        Raises:
            StoreWriteFailed: the record was removed from the file. The log stays usable, unless the removal failed.
        """
        return self._append([(kind, payload)], synced=False)[0]

    def sync(self) -> None:
        """Make all records durable. If they are durable already, do nothing.

        Raises:
            StoreWriteFailed: records that were appended without a sync may be lost. The log takes no more records.
        """
        try:
            self._check_writable([])
            if self._unsynced:
                self._commit([], synced=True)
        except (OSError, ValueError) as error:
            raise StoreWriteFailed(str(self.path), "sync") from error

    def _append(self, records: Sequence[tuple[int, bytes]], *, synced: bool) -> range:
        try:
            self._check_writable(records)
            if records:
                self._commit(records, synced=synced)
        except (OSError, ValueError) as error:
            raise StoreWriteFailed(str(self.path), "append") from error
        return range(self._next - len(records), self._next)

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next record will have."""
        return self._next

    @property
    def size_bytes(self) -> int:
        """Offset of the end of the last good record."""
        return self._end

    def close(self) -> None:
        """Close the log and release its lock. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            with at_the_end(lambda: self._disk.close(self._descriptor), "closing the file"):
                self._disk.unlock(self._descriptor)
        except OSError as error:
            raise StoreWriteFailed(str(self.path), "close") from error

    def _lock(self) -> None:
        try:
            self._disk.lock(self._descriptor)
        except BlockingIOError as error:
            mend = "another writer has this log open; stop it first"
            raise RunDirectoryError("log", str(self.path), mend) from error
        except OSError as error:
            raise StoreWriteFailed(str(self.path), "lock") from error

    def _recover(self, epoch: int) -> None:
        """Find the end of the last good record, cut off the rest, and sync records that a killed writer may have left
        unsynced."""
        with _reading(self.path), self._disk.reader(self._descriptor) as file:
            self._salt, found_epoch = read_header(file, self.path)
            if found_epoch != epoch:
                raise RunDirectoryError("epoch", epoch, f"{self.path} is of epoch {found_epoch}; begin a new log")
            for found in walk(file, self.path, self._salt):
                if isinstance(found, Frame):
                    self._end, self._next = found.end, found.sequence + 1
                else:
                    self.errors.append(found)
        if self.errors and self.errors[-1].offset == self._end:
            self.torn_tail = self.errors.pop()
        try:
            if self.torn_tail:
                self._disk.truncate(self._descriptor, self._end)
            self._disk.fsync(self._descriptor)
            self._disk.sync_folder(self.path.parent)
        except OSError as error:
            raise StoreWriteFailed(str(self.path), "recovery at opening") from error

    def _check_writable(self, records: Sequence[tuple[int, bytes]]) -> None:
        if self._closed:
            raise ValueError("the log was closed by its owner")
        if self._failure is not None:
            raise OSError(
                "the log takes no more records because a failed append could not be undone"
            ) from self._failure
        for kind, payload in records:
            if not 0 <= kind <= 0xFFFF:
                raise ValueError(f"kind {kind} is not within 0..65535")
            if len(payload) > PAYLOAD_LIMIT_BYTES:
                raise ValueError(f"a payload of {len(payload)} bytes is over the limit of {PAYLOAD_LIMIT_BYTES}")

    def _commit(self, records: Sequence[tuple[int, bytes]], *, synced: bool) -> None:
        data = bytearray()
        for sequence, (kind, payload) in enumerate(records, self._next):
            data += encode(kind, payload, sequence, self._end + len(data), self._salt)
        syncing = False
        self._check_untouched()
        try:
            write_all(self._descriptor, data, self._end, self._disk)
            syncing = synced
            if synced:
                self._disk.fdatasync(self._descriptor)
            self._unsynced = not synced
            self._end, self._next = self._end + len(data), self._next + len(records)
        # also after an interrupt, no incomplete frame may be left before the next record
        except BaseException as error:
            self._take_back(error, syncing)
            raise

    def _check_untouched(self) -> None:
        """Raises: OSError: another program changed the file, so acknowledged records may be lost."""
        size = self._disk.size_of(self._descriptor, self.path)
        if size != self._end:
            raise OSError(
                errno.ESTALE, f"it has {size} bytes, but {self._end} were written: another program changed it"
            )

    def _take_back(self, error: BaseException, syncing: bool) -> None:
        """Cut the file back to its last good record. If the cut may not be durable, refuse all later records.

        A failed sync is not repeated, because the kernel may have dropped the pages that were not written, and a second
        sync would then report success.
        """
        if syncing:
            self._failure = error
        try:
            self._disk.truncate(self._descriptor, self._end)
            if not syncing:
                self._disk.fsync(self._descriptor)
        except OSError as second:
            self._failure = error
            error.add_note(f"taking the record back failed too: {second!r}")


def scan(path: Path, *, disk: Disk = DISK) -> Scan:
    """Read a whole log. It is neither locked nor changed. A record that is being appended looks like a torn tail.

    Raises:
        StoreCorrupt: the file is missing, unreadable, or not a log that this program can read.
    """
    with _opened(path, disk) as file:
        salt, epoch = read_header(file, path)
        found = list(walk(file, path, salt))
    frames = [one for one in found if isinstance(one, Frame)]
    errors = [one for one in found if isinstance(one, LoadError)]
    torn_tail = errors.pop() if errors and errors[-1] is found[-1] else None
    return Scan(epoch, frames, errors, torn_tail)


def iterate(path: Path, *, disk: Disk = DISK) -> Iterator[Frame | LoadError]:
    """Read a log record by record, in the order of the file. A `LoadError` as the last item is the torn tail.

    Raises:
        StoreCorrupt: as by `scan`. The error is raised at the first item, or at the frame that this program cannot
            read.
    """
    with _opened(path, disk) as file:
        salt, _ = read_header(file, path)
        yield from walk(file, path, salt)


@contextmanager
def _opened(path: Path, disk: Disk) -> Iterator[BinaryIO]:
    with _reading(path):
        descriptor = disk.open(path, os.O_RDONLY)
        with at_the_end(lambda: disk.close(descriptor), "closing the file"), disk.reader(descriptor) as file:
            yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreCorrupt(str(path), f"cannot be read: {error.strerror or error}") from error


def _create(path: Path, epoch: int, disk: Disk) -> None:
    """Create a log without records. After a crash the file has its whole header, or does not exist."""
    try:
        atomic_write(path, image([], epoch=epoch), replace=False, disk=disk)
    except StoreWriteFailed as error:
        # if it exists, another process made it, and the lock decides
        if not isinstance(error.__cause__, FileExistsError):
            raise
