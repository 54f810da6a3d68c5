"""Writes large files through a checksum and reads none before its checksum holds; never knows what they contain."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import google_crc32c
import numpy as np

from esper.durable.files import DISK, Disk, publish, write_all
from esper.errors import StoreCorrupt, StoreWriteFailed

ALGORITHM = "crc32c"

_CHUNK_BYTES = 2**20
"""Small enough to be in the cache still when it is written after its checksum, and to let other threads run."""


@dataclass(frozen=True, slots=True)
class Written:
    """What `open_verified` has to be told about a file: length in bytes, checksum, and how that is computed."""

    length: int
    crc: int
    algorithm: str


def write_stream(path: Path, produce: Callable[[BinaryIO], None], *, disk: Disk = DISK) -> Written:
    """Make a new file `path` of what `produce` writes, durably. A crash at any instant leaves it whole or not there.

    Args:
        produce: Is given a file that can be written, from its beginning to its end, and flushed. It takes any buffer
            without a copy; `torch.save` can write to it. Not to be kept.

    Raises:
        StoreWriteFailed: the file could not be written, or `path` exists: then the cause is `FileExistsError`. It is
            not there, or the old one, unless only the sync of the folder failed.
        Exception: whatever `produce` raised of its own; `path` is as it was.
    """
    writer = _Writer(disk)
    try:
        publish(path, lambda descriptor: writer.run(descriptor, produce), disk.link, disk)
    except OSError as error:
        raise StoreWriteFailed(str(path), "write of a stream") from error
    return Written(writer.length, writer.crc, ALGORITHM)


def open_verified(path: Path, length: int, crc: int, algorithm: str, *, disk: Disk = DISK) -> BinaryIO:
    """Open `path` if it holds what was written: the file returned, at its start, is the one that was checked.

    Args:
        length, crc, algorithm: As `write_stream` returned them.

    Raises:
        StoreCorrupt: the file is absent, unreadable, of another length or checksum, or the algorithm is not known.
    """
    if algorithm != ALGORITHM:
        raise StoreCorrupt(str(path), f"is sealed by {algorithm!r}; this program knows {ALGORITHM!r}")
    try:
        file = _open(path, disk)
        try:
            _verify(file, path, length, crc)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise StoreCorrupt(str(path), f"cannot be read: {error.strerror or error}") from error
    return file


class _Writer(io.RawIOBase):
    """The file that a producer writes to. After an error it takes nothing more and raises that error again."""

    def __init__(self, disk: Disk) -> None:
        self.length, self.crc = 0, 0
        self._disk, self._descriptor = disk, -1
        self._failure: OSError | None = None

    def run(self, descriptor: int, produce: Callable[[BinaryIO], None]) -> None:
        self._descriptor = descriptor
        try:
            produce(cast(BinaryIO, self))  # it is one in all that a producer may do; io's classes do not say so
        except Exception:
            if self._failure is None:
                raise
            raise self._failure from None  # `torch.save` raises this very error, or an error of its own made of it
        finally:
            self.close()
        if self._failure is not None:  # the producer took no notice
            raise self._failure

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.length

    def write(self, data: Any, /) -> int:  # Any: whatever has a buffer, for which 3.11 has no type
        """Write all of `data`; unlike a file of the system it never writes a part."""
        whole = memoryview(data).cast("B")
        if self._failure is not None:
            raise self._failure
        if self.closed:
            raise ValueError("the producer has ended; its file takes nothing more")
        try:
            for start in range(0, len(whole), _CHUNK_BYTES):
                self._write_chunk(whole[start : start + _CHUNK_BYTES])
        except OSError as error:
            self._failure = error
            raise
        return len(whole)

    def _write_chunk(self, chunk: memoryview) -> None:
        self.crc = _extend(self.crc, chunk)
        write_all(self._descriptor, chunk, self.length, self._disk)
        self.length += len(chunk)


def _open(path: Path, disk: Disk) -> BinaryIO:
    descriptor = disk.open(path, os.O_RDONLY)
    try:
        return disk.reader(descriptor, owned=True)
    except OSError:  # a folder: then the descriptor is still ours
        disk.close(descriptor)
        raise


def _verify(file: BinaryIO, path: Path, length: int, crc: int) -> None:
    """Check all of `file`, reading it once, and go back to its start."""
    found = file.seek(0, os.SEEK_END)
    if found != length:
        raise StoreCorrupt(str(path), f"is {found} bytes long and was written with {length}")
    file.seek(0)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    read, checksum = 0, 0
    while count := cast(io.BufferedReader, file).readinto(buffer):
        read, checksum = read + count, _extend(checksum, buffer[:count])
    if read != length or checksum != crc:
        raise StoreCorrupt(str(path), f"its checksum is {checksum:08x} and was written as {crc:08x}")
    file.seek(0)


def _extend(crc: int, data: memoryview) -> int:
    """The library takes no memoryview; an array over it is no copy."""
    return int(google_crc32c.extend(crc, np.frombuffer(data, np.uint8)))
