"""Damage to the files of a run."""

from __future__ import annotations

from pathlib import Path

from esper.archive.journal import Entry, RecordKind, read


def flip(file: Path, at: int | None = None) -> None:
    """Change the byte at a place; by default the one in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0xFF
    file.write_bytes(data)


def records(journal: Path, kind: RecordKind, fence: int | None = None) -> list[Entry]:
    """The records of a kind, or those of them that tell of a fence."""
    return [e for e in read(journal)[0] if e.kind is kind and (fence is None or e.body["fence"] == fence)]


def flip_record(journal: Path, kind: RecordKind, fence: int | None = None) -> int:
    """Damage the last such record; its offset."""
    found = records(journal, kind, fence)[-1]
    flip(journal, found.offset + 40)
    return found.offset
