"""Keeps one long log in a folder of framed logs, so that old records can go; never decides which records are old.

FOLDER/00000000000000000000.log     a framed log, named by the sequence number of its first record
FOLDER/00000000000000000042.log     the last one is appended to; all others are closed and no longer grow
FOLDER/lease                        locked by the one writer
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

from esper.durable.files import DISK, DirectoryLease, Disk, atomic_write, sync_folder
from esper.durable.log import Frame, FramedLog, LoadError, image, iterate, scan
from esper.errors import StoreCorrupt, StoreWriteFailed
from esper.ground.closing import Closing, at_the_end, noted_on

_SEGMENT = re.compile(r"[0-9]{20}\.log")
_LITTER = re.compile(r"\.[0-9]{20}\.log\.[0-9a-f]{16}\.tmp")


class SegmentedLog(Closing):
    """A log in segments, open for appending by one thread of one process. Make it by `SegmentedLog.open`.

    A write that fails past mending closes it for good, as it does a `FramedLog`: close it and open it again.
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
        """Go on with the log in `folder`, which must exist, or begin it. All it then holds is durable.

        Args:
            limit_bytes: A segment that has grown to this size is closed before the next append.
            epoch: Written into each segment; who reopens the log has to know it.

        Raises:
            RunDirectoryError: another writer has the log open, it is of another epoch, or there is no such folder.
            StoreCorrupt: the last segment is not a log that this program can read. Nothing was changed.
            StoreWriteFailed: the last segment could not be created, locked, mended or synced.
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

    def append(self, kind: int, payload: bytes) -> int:
        """As `FramedLog.append`, into the last segment or, if that is full, a new one."""
        return self.append_many([(kind, payload)])[0]

    def append_many(self, records: Sequence[tuple[int, bytes]]) -> range:
        """As `FramedLog.append_many`; the records of one call are in one segment."""
        self._check_writable()
        if self._active.size_bytes >= self._limit_bytes:
            self.rotate()
        return self._active.append_many(records)

    def rotate(self) -> None:
        """Close the last segment and begin the next; if the last holds no record, nothing is done.

        Raises:
            StoreWriteFailed: the next could not be begun. If its file is there all the same, the log takes no more
                records until it is opened again: one more in the old segment would be numbered as those of the next.
        """
        self._check_writable()
        path = _segment(self.folder, self.next_sequence)
        if path == self._active.path:
            return
        ended = self._active
        try:
            self._active = FramedLog.open(path, epoch=self._epoch, first=_first(path), disk=self._disk)
        except StoreWriteFailed as error:
            self._failure = error
            if path not in segments(self.folder, disk=self._disk):
                self._failure = None
            raise
        ended.close()

    def expire(self, before: int) -> list[Path]:
        """Remove every closed segment that holds no record numbered `before` or later. Durable on return.

        Returns:
            The segments that are gone, oldest first.

        Raises:
            StoreWriteFailed: any of them may be gone.
        """
        present = segments(self.folder, disk=self._disk)
        old = [path for path, following in pairwise(present) if _first(following) <= before]
        _remove(old, self._disk)
        return old

    def rewrite(self, keep: Callable[[Frame], bool]) -> list[Path]:
        """Drop the records that `keep` says no to; the others keep their sequence numbers. Durable on return.

        The last segment is closed first. Each closed segment is replaced whole, one after the other: a crash leaves
        some of them old and the rest new. One that is left without a record is removed.

        Returns:
            The segments that hold damage. They were left as they are: what is in the damage may yet be read by hand.

        Raises:
            StoreCorrupt: a segment cannot be read; those before it are rewritten.
            StoreWriteFailed: a segment could not be replaced; those before it are rewritten, it and the rest are whole.
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
        """Give up the log, its last segment and its lock. Closing it again does nothing."""
        with at_the_end(self._lease.release, "giving the lease back"):
            self._active.close()

    def _check_writable(self) -> None:
        if self._failure is not None:
            raise StoreWriteFailed(str(self.folder), "append after a failed change of segments") from self._failure
        self._active.append_many([])  # writes nothing; raises if the segment takes no more records

    def _rewrite(self, path: Path, frames: list[Frame], epoch: int, keep: Callable[[Frame], bool]) -> None:
        kept = [frame for frame in frames if keep(frame)]
        if kept and len(kept) < len(frames):
            atomic_write(path, image(kept, epoch=epoch), disk=self._disk)
        if not kept:
            _remove([path], self._disk)


def segments(folder: Path, *, disk: Disk = DISK) -> list[Path]:
    """The segments in `folder`, oldest first; other files are left out.

    Raises:
        StoreCorrupt: the folder cannot be read.
    """
    try:
        return [folder / name for name in sorted(disk.names(folder)) if _SEGMENT.fullmatch(name)]
    except OSError as error:
        raise StoreCorrupt(str(folder), f"cannot be read: {error.strerror or error}") from error


def iterate_segments(folder: Path, *, disk: Disk = DISK) -> Iterator[tuple[Path, Frame | LoadError]]:
    """Read a segmented log record by record, each with the segment that holds it. Takes no lock and changes nothing.

    Raises:
        StoreCorrupt: when the first item is asked for, or at the segment that cannot be read.
    """
    for path in segments(folder, disk=disk):
        for found in iterate(path, disk=disk):
            yield path, found


def _segment(folder: Path, first: int) -> Path:
    return folder / f"{first:020d}.log"


def _first(path: Path) -> int:
    return int(path.stem)


def _remove(paths: Sequence[Path], disk: Disk) -> None:
    """Remove segments of one folder, durably."""
    if not paths:
        return
    try:
        for path in paths:
            disk.unlink(path)
    except OSError as error:
        raise StoreWriteFailed(str(path), "removal") from error
    sync_folder(paths[0].parent, disk=disk)


def _sweep(folder: Path, disk: Disk) -> None:
    """Remove the temporary files of a writer that died; the lease says that no other is at work."""
    try:
        for name in disk.names(folder):
            if _LITTER.fullmatch(name):
                disk.unlink(folder / name)
    except OSError as error:
        raise StoreWriteFailed(str(folder), "removal of temporary files") from error
