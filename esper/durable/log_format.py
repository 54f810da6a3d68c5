"""The bytes of a framed log. Records can be found again even in a damaged file.

    file    header frame*
    header  magic 8 | version 2 | salt 8 | epoch 8 | CRC32 4                                   big-endian, no padding
    frame   magic 4 | version 2 | kind 2 | length 4 | sequence 8 | CRC32 4 | payload | CRC32 4

The first CRC of a frame covers its header. Its start value depends on the file's random salt and on the frame's offset.
The second CRC covers the payload. Its start value is the first CRC. So a frame that was copied from another file, or
into a payload, is never read as a record, because CRCs of equal bytes with different start values always differ (in
files under 4 GiB).
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from esper.errors import StoreCorrupt

PAYLOAD_LIMIT_BYTES = 64 * 2**20

_VERSION = 1
_FILE_MAGIC, _FRAME_MAGIC = b"ESPERLOG", b"\xa5fr\x5a"
_FILE_FIELDS, _FRAME_FIELDS, _CRC = struct.Struct(">8sHQQ"), struct.Struct(">4sHHIQ"), struct.Struct(">I")
FILE_HEADER_BYTES, _FRAME_HEADER_BYTES = _FILE_FIELDS.size + _CRC.size, _FRAME_FIELDS.size + _CRC.size
_SEARCH_BYTES, _SEARCH_MOST_BYTES = 2**12, 2**20
"""Smallest and largest number of bytes per read in the search for a frame. The first reads are small, because most
damage is short.
"""


@dataclass(frozen=True, slots=True)
class Frame:
    """One record. `offset` is the byte at which its frame begins in the file."""

    offset: int
    sequence: int
    kind: int
    payload: bytes

    @property
    def end(self) -> int:
        """Offset of the next frame, in bytes."""
        return _end_of(self.offset, len(self.payload))


@dataclass(frozen=True, slots=True)
class LoadError:
    """An unreadable part of the file. Offsets are in bytes. `reason` is the error at its beginning."""

    offset: int
    length: int
    reason: str


def read_header(file: BinaryIO, path: Path) -> tuple[int, int]:
    """Return salt and epoch."""
    fields, header_crc = file.read(_FILE_FIELDS.size), file.read(_CRC.size)
    if not fields.startswith(_FILE_MAGIC):
        raise StoreCorrupt(str(path), "is not a framed log: the magic is missing")
    if header_crc != _CRC.pack(crc32(fields)):
        raise StoreCorrupt(str(path), "the file header is damaged")
    _, version, salt, epoch = _FILE_FIELDS.unpack(fields)
    if version != _VERSION:
        raise StoreCorrupt(str(path), f"is of format version {version}; this program reads version {_VERSION}")
    return salt, epoch


def walk(file: BinaryIO, path: Path, salt: int) -> Iterator[Frame | LoadError]:
    """Yield the records, and a `LoadError` for each unreadable part before, between and after them."""
    offset, size = FILE_HEADER_BYTES, file.seek(0, os.SEEK_END)
    damage: tuple[int, str] | None = None
    while offset < size:
        found, after = _read_frame(file, path, offset, size, salt)
        if isinstance(found, Frame):
            if damage:
                yield LoadError(damage[0], offset - damage[0], damage[1])
            yield found
            damage = None
        else:
            damage = damage or (offset, found)
        offset = after
    if damage:
        yield LoadError(damage[0], size - damage[0], damage[1])


def _read_frame(file: BinaryIO, path: Path, offset: int, size: int, salt: int) -> tuple[Frame | str, int]:
    """Read the frame at `offset`. Return the frame or the reason why it is unreadable, and the offset at which reading
    continues.

    A length is used only if the checksum of the header is right. The length is then compared with `size`, before memory
    is allocated.
    """
    file.seek(offset)
    fields, sealed = file.read(_FRAME_FIELDS.size), file.read(_CRC.size)
    if len(sealed) < _CRC.size:
        return "the frame header is cut short", size
    magic, version, kind, length, sequence = _FRAME_FIELDS.unpack(fields)
    if magic != _FRAME_MAGIC:
        return "no frame begins here", _next_magic(file, offset + 1, size)
    header_crc = crc32(fields, _seed(salt, offset))
    if sealed != _CRC.pack(header_crc):
        return "the checksum of the frame header is wrong", _next_magic(file, offset + 1, size)
    if version != _VERSION:  # not damage: to skip it, or to cut it off as a torn tail, would lose good records
        raise StoreCorrupt(str(path), f"frame version {version} at byte {offset}; this program reads {_VERSION}")
    end = _end_of(offset, length)
    if length > PAYLOAD_LIMIT_BYTES:
        return f"a payload of {length} bytes is over the limit of {PAYLOAD_LIMIT_BYTES}", end
    if end > size:
        return "the frame is cut short", size
    body = file.read(length + _CRC.size)
    payload, trailer = body[:length], body[length:]
    if trailer != _CRC.pack(crc32(payload, header_crc)):
        return "the checksum of the payload is wrong", end
    return Frame(offset, sequence, kind, payload), end


def _next_magic(file: BinaryIO, start: int, size: int) -> int:
    """Return the offset of the first frame magic at or after `start`. Return `size` if there is no frame magic."""
    file.seek(start)
    window, step = b"", _SEARCH_BYTES
    while chunk := file.read(step):
        step = min(2 * step, _SEARCH_MOST_BYTES)
        window = window[-len(_FRAME_MAGIC) + 1 :] + chunk
        if (at := window.find(_FRAME_MAGIC)) >= 0:
            return file.tell() - len(window) + at
    return size


def count_magics(file: BinaryIO) -> int:
    """Return the largest number of places in a file at which a frame may begin. A reader stops at each of these
    places.
    """
    count, end = 0, b""
    while chunk := file.read(_SEARCH_MOST_BYTES):
        count += (end + chunk).count(_FRAME_MAGIC)
        end = chunk[-len(_FRAME_MAGIC) + 1 :]  # the magic may begin in one chunk and end in the next
    return count


def encode(kind: int, payload: bytes, sequence: int, offset: int, salt: int) -> bytes:
    fields = _FRAME_FIELDS.pack(_FRAME_MAGIC, _VERSION, kind, len(payload), sequence)
    header_crc = crc32(fields, _seed(salt, offset))
    return fields + _CRC.pack(header_crc) + payload + _CRC.pack(crc32(payload, header_crc))


def _end_of(offset: int, length: int) -> int:
    return offset + _FRAME_HEADER_BYTES + length + _CRC.size


def _seed(salt: int, offset: int) -> int:
    return crc32(struct.pack(">QQ", salt, offset))


def image(frames: Iterable[Frame], *, epoch: int) -> bytes:
    """Return the bytes of a log file with these frames. It has a new salt; the sequence numbers are unchanged."""
    salt = secrets.randbits(64)
    fields = _FILE_FIELDS.pack(_FILE_MAGIC, _VERSION, salt, epoch)
    data = bytearray(fields + _CRC.pack(crc32(fields)))
    for frame in frames:
        data += encode(frame.kind, frame.payload, frame.sequence, len(data), salt)
    return bytes(data)
