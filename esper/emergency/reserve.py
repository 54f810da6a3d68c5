"""Reserved disk space. With it, signals can be acknowledged when the disk is full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from esper.durable.files import DISK, Disk
from esper.errors import StoreWriteFailed
from esper.ground.closing import at_the_end, noted_on
from esper.telemetry.events import Severity, severe

NAME = "reserve"
_STEP_BYTES = 64 * 2**10
"""Smallest growth of the file in bytes. Each growth costs a sync."""


class Reserve:
    """A file of zeros. When the disk is full, the blocks of the file are freed, so that the queue can use them.

    But another program may use the freed blocks first. Only the process that has the lease of the folder may use this
    object. A file with holes has fewer blocks than its size, for example after `cp --sparse=always` or `rsync -S`. So
    the blocks count, not the size.
    """

    def __init__(self, path: Path, size_bytes: int, disk: Disk) -> None:
        self._path, self._size, self._disk = path, size_bytes, disk
        self._told = False

    @classmethod
    def open(cls, path: Path, *, disk: Disk = DISK) -> Self:
        """Open the file and read how many bytes of it are on the disk. Create it empty if it is missing. A severe event
        reports a file with holes.

        Raises: StoreWriteFailed.
        """
        try:
            descriptor = disk.open(path, os.O_RDWR | os.O_CREAT)
            with at_the_end(lambda: disk.close(descriptor), "closing the reserve"):
                reserve = cls(path, 0, disk)
                reserve._size = reserve._on_disk(descriptor)
        except OSError as error:
            raise StoreWriteFailed(str(path), "opening the reserve") from error
        return reserve

    @property
    def size_bytes(self) -> int:
        """Number of reserved bytes, as far as the file system reports them."""
        return self._size

    def grow(self, needed_bytes: int) -> None:
        """Reserve at least `needed_bytes` in total. Raises: StoreWriteFailed: the reserve did not grow."""
        if needed_bytes <= self._size:
            return
        size = -(-needed_bytes // _STEP_BYTES) * _STEP_BYTES
        try:
            descriptor = self._disk.open(self._path, os.O_RDWR | os.O_CREAT)
            with at_the_end(lambda: self._disk.close(descriptor), "closing the reserve"):
                self._extend(descriptor, size)
                self._on_disk(descriptor)
        except OSError as error:
            raise StoreWriteFailed(str(self._path), "holding back room for acknowledgements") from error
        self._size = size

    def _extend(self, descriptor: int, size: int) -> None:
        before = self._disk.size_of(descriptor, self._path)
        try:
            self._disk.allocate(descriptor, size)
            self._disk.fsync(descriptor)
        except OSError as error:
            with noted_on(error, "taking the growth back"):
                self._disk.truncate(descriptor, before)
            raise

    def _on_disk(self, descriptor: int) -> int:
        """Return the number of bytes of the file that are on the disk. If the file has holes, report it once."""
        size, allocated = self._disk.size_of(descriptor, self._path), self._disk.allocated(descriptor)
        if allocated < size and not self._told:
            self._told = True
            told = {"file": str(self._path), "size_bytes": size, "allocated_bytes": allocated}
            severe("emergency_reserve_hollow", Severity.WARNING, **told)
        return min(size, allocated)

    def give_up(self) -> bool:
        """Free the blocks. Return false if no blocks were reserved.

        Raises:
            StoreWriteFailed: the system refused.
        """
        if self._size == 0:
            return False
        try:
            descriptor = self._disk.open(self._path, os.O_RDWR)
            with at_the_end(lambda: self._disk.close(descriptor), "closing the reserve"):
                self._disk.truncate(descriptor, 0)
        except OSError as error:
            raise StoreWriteFailed(str(self._path), "giving up the reserve") from error
        self._size = 0
        return True
