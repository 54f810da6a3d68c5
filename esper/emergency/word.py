"""The emergency word: level, count and generation in a file that processes map; read at each step, written by one.

A reader must be able to look 1,000 times a second without a system call, and to see a HALT even while the actor that
wrote it is busy or gone. The word is one 8-byte store, which x86-64 and AArch64 make whole when it is aligned.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from esper.ground.closing import Closing
from esper.leyline.signals import Level

_SIZE = mmap.PAGESIZE
_LEVEL_BITS, _GENERATION_BITS = 8, 24


@dataclass(frozen=True)
class WordState:
    """What the word says."""

    level: Level | None
    generation: int
    count: int
    """Signals published so far, modulo 2^32."""


class EmergencyWord(Closing):
    """The word in a mapped file; `create` by its one writer, `attach` by readers."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path, self._mapped = path, mapped
        self._view = memoryview(mapped).cast("Q")

    @classmethod
    def create(cls, path: Path) -> EmergencyWord:
        """Make the file, all clear. Raises: FileExistsError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            return cls(path, mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)

    @classmethod
    def attach(cls, path: Path) -> EmergencyWord:
        """Map an existing word. Raises: FileNotFoundError."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            return cls(path, mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)

    def set(self, level: Level | None, generation: int, count: int) -> None:
        """Replace the word in one store."""
        packed = (count & 0xFFFFFFFF) << (_LEVEL_BITS + _GENERATION_BITS)
        packed |= (generation & 0xFFFFFF) << _LEVEL_BITS
        self._view[0] = packed | (int(level) if level is not None else 0)

    def halted(self) -> bool:
        """HALT is set. The one question that is asked at every step."""
        return self._view[0] & 0xFF == Level.HALT

    def read(self) -> WordState:
        """The whole word."""
        packed = self._view[0]
        level = packed & 0xFF
        generation = (packed >> _LEVEL_BITS) & 0xFFFFFF
        return WordState(Level(level) if level else None, generation, packed >> (_LEVEL_BITS + _GENERATION_BITS))

    def close(self) -> None:
        """Unmap; the file stays until its creator unlinks it."""
        self._view.release()
        self._mapped.close()
