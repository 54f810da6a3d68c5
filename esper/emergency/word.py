"""The emergency word: level, generation and count of signals in a memory-mapped file, with one writer and many readers.

Trainers read the word at each step, up to 1,000 times a second, so a read must not need a system call. Trainers must
see a HALT even if the process that wrote the word is busy or dead. The word is written by one 8-byte store. On x86-64
and AArch64 an aligned 8-byte store is atomic, so no reader sees a mixture of two states and no lock is needed.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from esper.ground.closing import Closing
from esper.leyline.signals import Level

_SIZE = mmap.PAGESIZE
_HALT = int(Level.HALT)
_LEVEL_BITS, _GENERATION_BITS = 8, 24
"""Bits of the level and of the generation, beginning with the low bits of the word. Level 0 means no level. The other
32 bits are the count."""


@dataclass(frozen=True)
class WordState:
    """The content of the word."""

    level: Level | None
    generation: int
    """Generation of the run, modulo 2^24."""
    count: int
    """Number of signals published so far, modulo 2^32."""


class EmergencyWord(Closing):
    """The word in a mapped file, or in the memory of one process. The single writer calls `create`, the readers call
    `attach`."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path, self._mapped = path, mapped
        self._view = memoryview(mapped).cast("Q")

    @classmethod
    def create(cls, path: Path) -> EmergencyWord:
        """Make the file, without a level. Raises: FileExistsError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            return cls(path, mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)

    @classmethod
    def in_memory(cls) -> EmergencyWord:
        """Make a word without a file, for a run in one process."""
        return cls(Path(), mmap.mmap(-1, _SIZE))

    @classmethod
    def attach(cls, path: Path) -> EmergencyWord:
        """Map the file of an existing word. Raises: FileNotFoundError."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            return cls(path, mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)

    def set(self, level: Level | None, generation: int, count: int) -> None:
        """Replace the word by one atomic store. Only the writer may call it."""
        packed = (count & 0xFFFFFFFF) << (_LEVEL_BITS + _GENERATION_BITS)
        packed |= (generation & 0xFFFFFF) << _LEVEL_BITS
        self._view[0] = packed | (int(level) if level is not None else 0)

    def halted(self) -> bool:
        """Return whether the level is HALT. Trainers call this at every step."""
        return self._view[0] & 0xFF == _HALT

    def read(self) -> WordState:
        """Return the content of the word."""
        packed = self._view[0]
        level = packed & 0xFF
        generation = (packed >> _LEVEL_BITS) & 0xFFFFFF
        return WordState(Level(level) if level else None, generation, packed >> (_LEVEL_BITS + _GENERATION_BITS))

    def close(self) -> None:
        """Unmap the file. The caller of `create` must delete it."""
        self._view.release()
        self._mapped.close()
