"""Writes large files with a checksum, and verifies the checksum before a file is read."""

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
"""Bytes per piece. A piece is small enough to be in the CPU cache both when its checksum is computed and when it is
written. Other threads can run between two pieces.
"""


@dataclass(frozen=True, slots=True)
class Written:
    """Arguments of `open_verified` for a file: its length in bytes, its checksum, and the algorithm of the checksum."""

    length: int
    crc: int
    algorithm: str


def write_stream(path: Path, produce: Callable[[BinaryIO], None], *, disk: Disk = DISK) -> Written:
    """Make a new file `path` from the output of `produce`, durably. After a crash the file is whole, or does not exist.

    Args:
        produce: Called with a file that supports sequential writes and flush, so that `torch.save` can write to it. The
            file must not be used after `produce` returns.

    Raises:
        StoreWriteFailed: the file could not be written, or `path` exists (the cause is `FileExistsError`). `path` is
            unchanged unless only the sync of the folder failed.
        Exception: `produce` raised it. `path` is unchanged.
    """
    writer = _Writer(disk)
    try:
        publish(path, lambda descriptor: writer.run(descriptor, produce), disk.link, disk)
    except OSError as error:
        raise StoreWriteFailed(str(path), "write of a stream") from error
    return Written(writer.length, writer.crc, ALGORITHM)


def open_verified(path: Path, length: int, crc: int, algorithm: str, *, disk: Disk = DISK) -> BinaryIO:
    """Check length and checksum of `path`, and return the same open file, at its start.

    Args:
        length, crc, algorithm: The fields of the `Written` that `write_stream` returned.

    Raises:
        StoreCorrupt: the file is missing or unreadable, length or checksum differ, or the algorithm is unknown.
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
    """The file to which a producer writes. After an error, the file refuses all writes with that error."""

    def __init__(self, disk: Disk) -> None:
        self.length, self.crc = 0, 0
        self._disk, self._descriptor = disk, -1
        self._failure: OSError | None = None

    def run(self, descriptor: int, produce: Callable[[BinaryIO], None]) -> None:
        self._descriptor = descriptor
        try:
            produce(cast(BinaryIO, self))  # it has all methods that a producer may use, but is not a type of `io`
        except Exception:
            if self._failure is None:
                raise
            raise self._failure from None  # `torch.save` raises this error, or another error made from it
        finally:
            self.close()
        if self._failure is not None:  # the producer ignored the error
            raise self._failure

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.length

    def write(self, data: Any, /) -> int:  # Any: an object with a buffer, for which Python 3.11 has no type
        """Write all of `data`."""
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
    except OSError:  # `path` may be a folder; the descriptor must be closed here
        disk.close(descriptor)
        raise


def _verify(file: BinaryIO, path: Path, length: int, crc: int) -> None:
    """Read `file` once, check it, and seek back to its start."""
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
    """Continue a checksum. The CRC library does not accept a memoryview, but it accepts a numpy array over the same
    memory.
    """
    return int(google_crc32c.extend(crc, np.frombuffer(data, np.uint8)))
