"""One long log as a folder of framed logs, so that old records can be removed.

FOLDER/00000000000000000000.log     a framed log, named by the sequence number of its first record
FOLDER/00000000000000000042.log     records are appended to the last; all others are closed and no longer grow
FOLDER/lease                        locked by the only writer
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from esper.durable.files import DISK, DirectoryLease, Disk, atomic_write, sync_folder
from esper.durable.log import FramedLog, iterate, scan
from esper.durable.log_format import Frame, LoadError, image
from esper.errors import StoreCorrupt, StoreWriteFailed
from esper.ground.closing import Closing, at_the_end, noted_on

ASIDE = "damaged.log"
"""Name of the last segment that `SegmentedLog.set_aside` renamed."""
_SEGMENT = re.compile(r"[0-9]{20}\.log")
_LITTER = re.compile(r"\.[0-9]{20}\.log\.[0-9a-f]{16}\.tmp")


class SegmentedLog(Closing):
    """A log in segments that one thread of one process has open for appending. `SegmentedLog.open` makes it.

    After a write failure that cannot be repaired, the log refuses all records until it is closed and opened again.
    """

    def __init__(
        self, folder: Path, lease: DirectoryLease, active: FramedLog, *, limit_bytes: int, epoch: int, disk: Disk
    ) -> None:
        self.folder = folder
        self._lease, self._active, self._disk = lease, active, disk
        self._limit_bytes, self._epoch = limit_bytes, epoch
        self._failure: StoreWriteFailed | None = None

    @classmethod
    def open(cls, folder: Path, *, limit_bytes: int, epoch: int = 0, disk: Disk = DISK) -> Self:
        """Open the log in `folder`, or create it there. The folder must exist. All records of the log are durable on
        return.

        Args:
            limit_bytes: A segment that has grown to this size is closed before the next append.
            epoch: Number written into each segment. To reopen the log, pass the same number.

        Raises:
            RunDirectoryError: another writer has the log open, its epoch differs, or the folder does not exist.
            StoreCorrupt: the last segment is not a log that this program can read. Nothing was changed.
            StoreWriteFailed: the last segment could not be created, locked, repaired or synced.
        """
        lease = DirectoryLease(folder, what="log", disk=disk)
        lease.acquire()
        try:
            _sweep(folder, disk)
            present = segments(folder, disk=disk)
            last = present[-1] if present else _segment(folder, 0)
            active = FramedLog.open(last, epoch=epoch, first=_first(last), disk=disk)
        except BaseException as error:
            with noted_on(error, "giving the lease back"):
                lease.release()
            raise
        return cls(folder, lease, active, limit_bytes=limit_bytes, epoch=epoch, disk=disk)

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next record will have."""
        return self._active.next_sequence

    @property
    def torn_tail(self) -> tuple[Path, LoadError] | None:
        """The last segment, and the damage after the last good record of that segment. The damage was cut off when the
        segment was opened.
        """
        return (self._active.path, self._active.torn_tail) if self._active.torn_tail else None

    @property
    def size_bytes(self) -> int:
        """Size of the last segment."""
        return self._active.size_bytes

    def append(self, kind: int, payload: bytes) -> int:
        """Like `FramedLog.append`. If the last segment is full, the record is appended to a new segment."""
        return self.append_many([(kind, payload)])[0]

    def append_many(self, records: Sequence[tuple[int, bytes]]) -> range:
        """Like `FramedLog.append_many`. All records of one call are in one segment."""
        self._check_writable()
        if self._active.size_bytes >= self._limit_bytes:
            self.rotate()
        return self._active.append_many(records)

    def append_unsynced(self, kind: int, payload: bytes) -> int:
        """Like `FramedLog.append_unsynced`. If the last segment is full, the record is appended to a new segment."""
        self._check_writable()
        if self._active.size_bytes >= self._limit_bytes:
            self.rotate()
        return self._active.append_unsynced(kind, payload)

    def rotate(self) -> None:
        """Close the last segment and begin a new segment. If the last segment has no record, nothing is done.

        Afterwards all records of the closed segment are durable.

        Raises:
            StoreWriteFailed: the new segment could not be begun. If its file exists nevertheless, the log refuses
                records until it is opened again, because the next record in the old segment would have the same number
                as the first record of the new segment.
        """
        self._check_writable()
        path = _segment(self.folder, self.next_sequence)
        if path == self._active.path:
            return
        ended = self._active
        ended.sync()
        try:
            self._active = FramedLog.open(path, epoch=self._epoch, first=_first(path), disk=self._disk)
        except StoreWriteFailed as error:
            self._failure = error
            if path not in segments(self.folder, disk=self._disk):
                self._failure = None
            raise
        ended.close()

    def expire(self, before: int) -> list[Path]:
        """Remove every closed segment whose records all have numbers below `before`. The removal is durable on return.

        Returns:
            The removed segments, the oldest first.

        Raises:
            StoreWriteFailed: some or all of these segments may be removed.
        """
        present = segments(self.folder, disk=self._disk)
        old = [path for path, following in pairwise(present) if _first(following) <= before]
        _remove(old, self._disk)
        return old

    def set_aside(self, segment: Path) -> None:
        """Rename a closed segment to `damaged.log`, so that its damage can be examined by hand; its records are gone.

        An earlier `damaged.log` is replaced. A segment that was removed is ignored.

        Raises:
            StoreWriteFailed: the system refused.
        """
        assert segment != self._active.path, "the last segment is in use"
        try:
            if self._disk.exists(segment):
                self._disk.rename(segment, self.folder / ASIDE)
                self._disk.sync_folder(self.folder)
        except OSError as error:
            raise StoreWriteFailed(str(segment), "renaming a damaged segment") from error

    def rewrite(self, keep: Callable[[Frame], bool]) -> list[Path]:
        """Drop the records for which `keep` returns false. The numbers of the other records do not change. The change
        is durable on return.

        The last segment is closed first. The closed segments are replaced one after the other, each as a whole. After a
        crash, some segments are old and the rest are new. A segment without records is removed.

        Returns:
            The damaged segments. Damaged segments are not changed, so that people can still examine them.

        Raises:
            StoreCorrupt: a segment cannot be read. The segments before it are rewritten.
            StoreWriteFailed: a segment could not be replaced. The segments before it are rewritten, the others are
                unchanged.
        """
        self.rotate()
        damaged = []
        for path in segments(self.folder, disk=self._disk):
            if path == self._active.path:
                break
            found = scan(path, disk=self._disk)
            if found.errors or found.torn_tail:
                damaged.append(path)
            else:
                self._rewrite(path, found.frames, found.epoch, keep)
        return damaged

    def close(self) -> None:
        """Close the log and its last segment, and release the lock. A second call does nothing."""
        with at_the_end(self._lease.release, "giving the lease back"):
            self._active.close()

    def _check_writable(self) -> None:
        if self._failure is not None:
            raise StoreWriteFailed(str(self.folder), "append after a failed change of segments") from self._failure
        self._active.append_many([])  # this writes nothing, and raises if the segment refuses records

    def _rewrite(self, path: Path, frames: list[Frame], epoch: int, keep: Callable[[Frame], bool]) -> None:
        kept = [frame for frame in frames if keep(frame)]
        if kept and len(kept) < len(frames):
            atomic_write(path, image(kept, epoch=epoch), disk=self._disk)
        if not kept:
            _remove([path], self._disk)


def segments(folder: Path, *, disk: Disk = DISK) -> list[Path]:
    """Return the segments in `folder`, the oldest first. Other files are left out.

    Raises:
        StoreCorrupt: the folder cannot be read.
    """
    try:
        return [folder / name for name in sorted(disk.names(folder)) if _SEGMENT.fullmatch(name)]
    except OSError as error:
        raise StoreCorrupt(str(folder), f"cannot be read: {error.strerror or error}") from error


def iterate_segments(folder: Path, *, disk: Disk = DISK) -> Iterator[tuple[Path, Frame | LoadError]]:
    """Read a segmented log record by record, each with its segment. The log is neither locked nor changed.

    Raises:
        StoreCorrupt: a segment or the folder cannot be read. The error is raised at the first item, or at the segment
            that cannot be read.
    """
    for path in segments(folder, disk=disk):
        for found in iterate(path, disk=disk):
            yield path, found


def _segment(folder: Path, first: int) -> Path:
    return folder / f"{first:020d}.log"


def _first(path: Path) -> int:
    return int(path.stem)


def _remove(paths: Sequence[Path], disk: Disk) -> None:
    """Remove segments of a folder, durably."""
    if not paths:
        return
    try:
        for path in paths:
            disk.unlink(path)
    except OSError as error:
        raise StoreWriteFailed(str(path), "removal") from error
    sync_folder(paths[0].parent, disk=disk)


def _sweep(folder: Path, disk: Disk) -> None:
    """Remove the temporary files of a killed writer. The lease ensures that there is no other writer."""
    try:
        for name in disk.names(folder):
            if _LITTER.fullmatch(name):
                disk.unlink(folder / name)
    except OSError as error:
        raise StoreWriteFailed(str(folder), "removal of temporary files") from error
