"""The valid history of a run: the records of all its journals, without records that a later generation took back.

Each generation of a run has its own journal. After the first generation, the first record of a journal is SUPERSEDED.
SUPERSEDED names the fence from which the run continued, and the length of each older journal at that moment. Records
that an older writer appends later are not valid. A generation whose takeover failed has no SUPERSEDED, so it takes no
records back.

A resume uses `read_past`, which raises if the valid history is ambiguous. `esper inspect` uses `look_at`, which returns
the readable history of a damaged run, and each damaged part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from esper.archive.damage import (
    Damage,
    damage_of_summary,
    missing_journals,
    newest_generation,
    read_identity,
    read_journal,
)
from esper.archive.generations import as_recorded, cut_short, joined_entries, retained, valid_lengths
from esper.archive.identity import Identity, identity_of, load_identity
from esper.archive.journal import Entry, RecordKind
from esper.archive.run_directory import (
    checkpoints_folder,
    journals,
    misplaced,
    refuse_misplaced,
    refusing,
    run_file,
)
from esper.durable.files import sync_file, sync_folder
from esper.emergency.level import LevelHistory
from esper.errors import RunDirectoryError, StoreCorrupt
from esper.leyline.checkpoint_record import QUARANTINE, CheckpointWritten
from esper.leyline.signals import Level


@dataclass(frozen=True)
class Remains:
    """The readable history of a run. It may be shown to people, but no decision may depend on it."""

    identity: Identity | None
    """Read from `run.json`, or from the journals if that file cannot be read."""
    generation: int
    """Number of the newest generation. 0: the run ended before it made a journal."""
    entries: tuple[Entry, ...]
    """The valid records, in order."""
    commits: tuple[CheckpointWritten, ...]
    """Committed checkpoints that retention has not dropped, the oldest first. The file of a checkpoint may be
    missing."""
    damages: tuple[Damage, ...]
    """Every unreadable part of a journal."""
    resumes: int
    """Number of resumes of the run."""
    rollbacks: int
    restarts: int
    """Number of restarts of actors."""
    newest_lost: bool
    """True if no record of the newest journal can be read. The progress and the end of the newest generation are then
    unknown."""

    @property
    def damaged(self) -> bool:
        """Whether a journal has damage other than an incomplete last record."""
        return any(not damage.torn for damage in self.damages)


@dataclass(frozen=True)
class Past(Remains):
    """The history of a run, whose valid records are certain."""

    identity: Identity

    @property
    def fence(self) -> int:
        """The fence from which the run is resumed: that of the last committed checkpoint. 0: the run has none."""
        return self.commits[-1].fence if self.commits else 0


def check_sound(path: Path, past: Remains) -> None:
    """Raises: StoreCorrupt: a journal has damage other than an incomplete last record."""
    for damage in past.damages:
        if not damage.torn:
            raise StoreCorrupt(str(path / damage.file), f"byte {damage.offset}: {damage.reason}")


def read_past(path: Path) -> Past:
    """Read a run's journals, without a lock. The run may be in progress.

    Raises:
        RunDirectoryError: no run is here, or a file or folder of the run has a wrong type.
        StoreCorrupt: `run.json` or a journal is missing or was not written by esper, the valid records of a journal are
            ambiguous, or `summary.json` is not a summary.
    """
    refuse_misplaced(path)
    load_identity(path)
    found = look_at(path)
    for damage in found.damages:
        if damage.offset is None:
            raise StoreCorrupt(str(path / damage.file), damage.reason)
    return Past(**vars(found))


def settled_past(path: Path) -> Past:
    """Like `read_past`, but sync the journals first. Therefore all returned records are durable, even if their writer
    was killed.

    Raises:
        StoreWriteFailed: the sync failed; a power failure may lose records.
        RunDirectoryError, StoreCorrupt: as by `read_past`.
    """
    for file in journals(path).values():
        sync_file(file)
    sync_folder(path)
    return read_past(path)


def look_at(path: Path) -> Remains:
    """Read a run as far as possible, without a lock. The run may be in progress, or damaged in any way.

    Raises:
        RunDirectoryError: the directory has no file of a run, or the system refuses to read it.
    """
    with refusing("RUN", path):
        return _look_at(path)


def _look_at(path: Path) -> Remains:
    """Like `look_at`, but raise errors of the system unchanged."""
    if not path.is_dir() or not (run_file(path).exists() or checkpoints_folder(path).is_dir() or journals(path)):
        raise RunDirectoryError("RUN", str(path), "no run is here (no run.json, no journal, no checkpoints)")
    identity, damages = read_identity(path)  # read before the journals, so that the journals are not older
    files = journals(path)
    newest = newest_generation(path, files, identity)
    damages += missing_journals(path, files, newest)
    strange = {name: Damage(name, None, what) for name, what in misplaced(path).items()}
    said, unread = _readable(files)
    valid = valid_lengths(said)
    damages = [as_recorded(damage, valid) for damage in (*damages, *unread)]
    damages += cut_short({number: files[number] for number in said}, valid)
    entries, undecided = joined_entries(path, said, valid, {damage.file for damage in damages if not damage.torn})
    did = [
        {entry.kind for entry in its_entries} for its_entries in said.values()
    ]  # records that were taken back count here, too
    commits, newest_lost = committed(entries), newest > 0 and newest not in said
    in_doubt = any(not damage.torn for damage in (*damages, *undecided))
    there = _expected(path, commits[-1:] if in_doubt else retained(said, valid), newest_lost=newest_lost)
    return Remains(
        identity if identity is not None else _journaled_identity(entries),
        newest,
        tuple(entries),
        tuple(one for one in commits if one.file in there),
        (*strange.values(), *(d for d in (*damages, *undecided, *damage_of_summary(path)) if d.file not in strange)),
        sum(RecordKind.RUN_RESUMED in kinds for kinds in did),
        sum(RecordKind.ROLLED_BACK in kinds for kinds in did),
        sum(_restarts(entry) for its_entries in said.values() for entry in its_entries),
        newest_lost,
    )


def _readable(files: Mapping[int, Path]) -> tuple[dict[int, list[Entry]], list[Damage]]:
    """Return the readable records of the journals by generation, and the damages. An unreadable journal has no key."""
    said: dict[int, list[Entry]] = {}
    damages: list[Damage] = []
    for generation, file in files.items():
        try:
            said[generation], damaged = read_journal(file)
            damages += damaged
        except StoreCorrupt as error:
            damages.append(Damage(file.name, None, error.reason))
    return said, damages


def _expected(path: Path, due: Sequence[CheckpointWritten], *, newest_lost: bool) -> set[str]:
    """Return the names of the checkpoint files that exist or should exist.

    Args:
        due: The checkpoints that retention keeps, the oldest first.
        newest_lost: True if the newest journal cannot be read. Then a file of `due` may have been removed by the newest
            generation.
    """
    put_aside = _names(checkpoints_folder(path) / QUARANTINE) - {one.file for one in due[-1:]}
    return _names(checkpoints_folder(path)) | ({one.file for one in due if not newest_lost} - put_aside)


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def committed(entries: Iterable[Entry]) -> list[CheckpointWritten]:
    """Return every checkpoint that was ever committed, the oldest first."""
    return [CheckpointWritten.model_validate(e.body) for e in entries if e.kind is RecordKind.CHECKPOINT_COMMITTED]


def _restarts(entry: Entry) -> int:
    """Return the number of restarts of actors in a record."""
    if entry.kind is RecordKind.ACTOR_RESTARTED:
        return len(entry.body["actors"])
    return int(entry.kind is RecordKind.DIED_STARTING)


def level_history(entries: Iterable[Entry], calm_fences: int) -> LevelHistory:
    """Return the emergency levels of a run by fence. `calm_fences`: the setting `emergency.calm_fences`."""
    history = LevelHistory(calm_fences)
    for entry in entries:
        if entry.kind is RecordKind.SIGNAL:
            history.add(entry.body.get("fence", 0), Level(entry.body["level"]))
    return history


def last_halt(entries: Iterable[Entry]) -> Entry | None:
    """Return the first HALT that the run has read since it began or was last resumed. None: it has read no HALT."""
    halt: Entry | None = None
    for entry in entries:
        if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED):
            halt = None
        elif halt is None and entry.kind is RecordKind.SIGNAL and entry.body["level"] == Level.HALT:
            halt = entry
    return halt


def _journaled_identity(entries: Sequence[Entry]) -> Identity | None:
    """Return the content of `run.json` from the journals. Each process that executed the run also wrote this content
    into its journal.
    """
    bodies = [entry.body for entry in entries if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED)]
    try:
        return identity_of(json.dumps(bodies[-1])) if bodies else None
    except ValidationError:  # written by another version
        return None
