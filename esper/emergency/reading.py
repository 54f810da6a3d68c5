"""Reads the log of the emergency queue, in bounded time and memory. The log may be damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from esper.durable.files import DISK, Disk
from esper.durable.log import iterate
from esper.durable.log_format import LoadError, count_magics
from esper.durable.segments import segments
from esper.emergency.queue_state import HeldSignal, QueueState, in_order
from esper.emergency.records import Record, Unreadable, decoded
from esper.errors import StoreCorrupt
from esper.ground.closing import at_the_end

QUEUE = "queue"
"""Folder of the queue in `RUN/emergency`."""
MOST_LOG_BYTES = 512 * 2**20
"""Largest size of a log. esper writes no larger log, because it compacts the log and limits the capacity."""
MOST_FRAMES = 2**20
"""Largest number of places in a log that look like the beginning of a record. This limits the time of reading."""
MOST_SEGMENTS = 1000
MOST_CAPACITY = 4096
"""Largest capacity of a queue. A log with more waiting signals was not written by esper."""
_READINGS = 5
"""Number of times that a reader without a lock begins again, because the owner of the queue has replaced the files."""


@dataclass(frozen=True)
class Damage:
    """An unreadable part of a segment. `offset` and `length` are in bytes; a length of 0 means the whole file."""

    file: Path
    offset: int
    length: int
    reason: str


@dataclass(frozen=True)
class QueueContents:
    """The state of a queue after all readable records of its log, and the damage in the log."""

    state: QueueState
    damage: tuple[Damage, ...]

    def waiting(self) -> tuple[HeldSignal, ...]:
        """Return the signals in the queue, by level, then by age."""
        return tuple(in_order(self.state.held.values()))


def read_queue(folder: Path, *, cap: int = 0, disk: Disk = DISK) -> QueueContents:
    """Read a queue without a lock, and without changing it. Its owner may write at the same time. In this case an
    append in progress looks like damage.

    Args:
        cap: As in `QueueState`.

    Raises:
        StoreCorrupt: the folder or a segment cannot be read, or it is larger than any log that esper writes.
    """
    for _ in range(_READINGS - 1):
        try:
            return _read(folder, cap, disk)
        except StoreCorrupt as error:
            if not isinstance(error.__cause__, FileNotFoundError) or not disk.exists(folder):
                raise
    return _read(folder, cap, disk)


def _read(folder: Path, cap: int, disk: Disk) -> QueueContents:
    refuse_oversize(folder, disk)
    state, damage = QueueState(cap), list[Damage]()
    for found in _records(folder, disk):
        if isinstance(found, Damage):
            damage.append(found)
            continue
        state.apply(found)
        if len(state.held) > MOST_CAPACITY:
            raise StoreCorrupt(str(folder), f"more than {MOST_CAPACITY} signals wait in it: esper did not write it")
    return QueueContents(state, tuple(damage))


def refuse_oversize(folder: Path, disk: Disk) -> None:
    """Raises: StoreCorrupt: the folder cannot be read, or it is larger than any log that esper writes."""
    paths = segments(folder, disk=disk)
    if len(paths) > MOST_SEGMENTS:
        raise StoreCorrupt(str(folder), f"it holds {len(paths)} segments; esper writes at most {MOST_SEGMENTS}")
    size = log_bytes(folder, disk)
    if size > MOST_LOG_BYTES:
        raise StoreCorrupt(str(folder), f"it holds {size} bytes of segments; esper writes at most {MOST_LOG_BYTES}")
    frames = sum(_frames(path, disk) for path in paths)
    if frames > MOST_FRAMES:
        raise StoreCorrupt(str(folder), f"it holds {frames} beginnings of records; esper writes at most {MOST_FRAMES}")


def log_bytes(folder: Path, disk: Disk) -> int:
    """Return the size of all segments. Raises: StoreCorrupt: the folder or a segment cannot be read."""
    return sum(_size(path, disk) for path in segments(folder, disk=disk))


def _size(path: Path, disk: Disk) -> int:
    return _measured(path, disk, lambda descriptor: disk.size_of(descriptor, path))


def _frames(path: Path, disk: Disk) -> int:
    def count(descriptor: int) -> int:
        with disk.reader(descriptor) as file:
            return count_magics(file)

    return _measured(path, disk, count)


def _measured(path: Path, disk: Disk, measure: Callable[[int], int]) -> int:
    """Return the result of `measure` for a segment. Return 0 if the owner of the queue has removed the segment."""
    try:
        descriptor = disk.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # the file behind a link is no part of the queue
        with at_the_end(lambda: disk.close(descriptor), "closing the segment"):
            return measure(descriptor)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return 0
        linked = error.errno == errno.ELOOP
        why = "is a symbolic link, and esper writes none" if linked else f"cannot be read: {error.strerror or error}"
        raise StoreCorrupt(str(path), why) from error


def _records(folder: Path, disk: Disk) -> Iterator[Record | Damage]:
    paths = segments(folder, disk=disk)
    for path in paths:
        try:
            yield from _of_segment(path, disk)
        except StoreCorrupt as error:
            if path == paths[-1] or isinstance(error.__cause__, OSError):
                raise
            yield Damage(path, 0, 0, error.reason)  # the header of an older segment


def _of_segment(path: Path, disk: Disk) -> Iterator[Record | Damage]:
    for found in iterate(path, disk=disk):
        if isinstance(found, LoadError):
            yield Damage(path, found.offset, found.length, found.reason)
        elif isinstance(record := decoded(found.kind, found.payload), Unreadable):
            yield Damage(path, found.offset, found.end - found.offset, record.reason)
        else:
            yield record
