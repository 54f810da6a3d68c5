"""Reads each file of a run directory as far as possible, and describes the unreadable parts."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from esper.archive.identity import Identity, load_identity
from esper.archive.journal import FIRST_GENERATION, Entry, read
from esper.archive.journal_schema import misfit
from esper.archive.run_directory import checkpoints_folder, journal_file, reports_folder, run_file, summary_file
from esper.durable.files import read_small
from esper.errors import RunDirectoryError, StoreCorrupt


@dataclass(frozen=True)
class Damage:
    """A part of a run directory that cannot be read."""

    file: str
    """Name of the file in the run directory."""
    offset: int | None
    """Offset of the unreadable part, in bytes. None: the file is missing or unreadable as a whole, so the valid history
    is ambiguous."""
    reason: str
    torn: bool = False
    """True for an incomplete record at the end of a journal. The append of this record was interrupted or is still in
    progress. It was never acknowledged."""

    def __str__(self) -> str:
        place = f", byte {self.offset}" if self.offset is not None else ""
        return f"{self.file}{place}: {self.reason}"


def read_identity(path: Path) -> tuple[Identity | None, list[Damage]]:
    """Return the content of `run.json`, or its damage."""
    file = run_file(path)
    if not file.is_file():
        return None, [Damage(file.name, None, "is missing")]
    try:
        return load_identity(path), []
    except StoreCorrupt as error:
        return None, [Damage(file.name, None, error.reason)]
    except RunDirectoryError as error:
        return None, [Damage(file.name, None, error.mend)]


def damage_of_summary(path: Path) -> list[Damage]:
    """Return the damage if `summary.json` exists and is not a summary. The valid history does not depend on this
    file."""
    file = summary_file(path)
    if not file.exists():
        return []
    try:
        content = json.loads(read_small(file))
    except OSError as error:
        return [Damage(file.name, None, f"cannot be read: {error.strerror}")]
    except (ValueError, RecursionError, StoreCorrupt):  # the file is not JSON, is nested too deeply, or is too large
        content = None
    if isinstance(content, dict) and "weights_sha256" in content:
        return []
    reason = "is no summary of a run; remove it, and `esper resume` writes the summary of a finished run again"
    return [Damage(file.name, None, reason)]


def newest_generation(path: Path, there: Collection[int], identity: Identity | None) -> int:
    """Return the number of the newest journal that must exist. 0: the run ended before it made a journal."""
    newest = max([*there, identity.generation if identity is not None else FIRST_GENERATION])
    later = (checkpoints_folder(path), reports_folder(path), summary_file(path))
    died_early = newest == FIRST_GENERATION and not there and not any(file.exists() for file in later)
    return 0 if died_early and identity is not None else newest


def missing_journals(path: Path, there: Iterable[int], newest: int) -> list[Damage]:
    """Return a `Damage` for each gap in the numbers of the journals."""
    damages, expected = [], FIRST_GENERATION
    for generation in (*there, newest + 1):
        if generation > expected:
            last = journal_file(path, generation - 1).name
            reason = "is missing" if generation - 1 == expected else f"is missing, as are all up to {last}"
            damages.append(Damage(journal_file(path, expected).name, None, reason))
        expected = generation + 1
    return damages


def read_journal(file: Path) -> tuple[list[Entry], list[Damage]]:
    """Return the records of a journal, and a `Damage` for each unreadable part.

    Raises:
        StoreCorrupt: the file is not a journal.
    """
    size = file.stat().st_size if file.exists() else 0  # the size is read first, because the file may grow
    entries, errors = read(file)
    damages = [Damage(file.name, e.offset, e.reason, torn=e.offset + e.length >= size) for e in errors]
    misfits = {entry.offset: reason for entry in entries if (reason := misfit(entry))}
    damages += [Damage(file.name, offset, reason) for offset, reason in misfits.items()]
    return [entry for entry in entries if entry.offset not in misfits], damages
