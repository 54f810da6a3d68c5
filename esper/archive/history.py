"""The valid history of a run: the records of all its journals, without those that a later generation took back.

Each generation of a run has its own journal. After the first generation, the first record of a journal is SUPERSEDED:
it names the fence from which the run continued, and the length of each older journal at that moment. Records that an
older writer appends later do not count. A generation whose takeover failed has no SUPERSEDED and takes nothing back.

`read_past` is for resuming: it raises if the valid history is ambiguous. `look_at` is for showing: it returns what can
be read of a damaged run, and each damaged part.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from pydantic import ValidationError

from esper.archive.identity import Identity, load_identity
from esper.archive.journal import FIRST_GENERATION, Entry, RecordKind, read
from esper.archive.journal_schema import kept_newest, misfit
from esper.archive.run_directory import (
    checkpoints_folder,
    generation_of,
    journal_file,
    journals,
    misplaced,
    refuse_misplaced,
    refusing,
    reports_folder,
    run_file,
    summary_file,
)
from esper.durable.files import read_small, sync_file, sync_folder
from esper.errors import RunDirectoryError, StoreCorrupt
from esper.leyline.checkpoint_record import QUARANTINE, CheckpointWritten
from esper.leyline.signals import Level


@dataclass(frozen=True)
class Damage:
    """A part of a run directory that cannot be read."""

    file: str
    """Name of the file in the run directory."""
    offset: int | None
    """Offset of the unreadable part, in bytes. None: the whole file, so that the valid history is ambiguous."""
    reason: str
    torn: bool = False
    """True for an incomplete record at the end of a journal: an append that was interrupted or is in progress. No
    writer was told that it is durable."""

    def __str__(self) -> str:
        place = f", byte {self.offset}" if self.offset is not None else ""
        return f"{self.file}{place}: {self.reason}"


@dataclass(frozen=True)
class Remains:
    """The readable history of a run. For display only: no decision may depend on it."""

    identity: Identity | None
    """From `run.json`; from the journals if that cannot be read."""
    generation: int
    """Number of the newest generation. 0: the run died before its first journal was made."""
    entries: tuple[Entry, ...]
    """The valid records, in order."""
    commits: tuple[CheckpointWritten, ...]
    """Committed checkpoints that retention has not dropped, oldest first. A file may be missing."""
    damages: tuple[Damage, ...]
    """Every unreadable part of a journal."""
    resumes: int
    """How often the run was resumed."""
    rollbacks: int
    restarts: int
    """How often actors were restarted."""
    newest_lost: bool
    """True if no record of the newest journal can be read: its progress and its end are unknown."""

    @property
    def damaged(self) -> bool:
        """Whether more is lost than an incomplete last record."""
        return any(not damage.torn for damage in self.damages)


@dataclass(frozen=True)
class Past(Remains):
    """The history of a run whose valid records are certain."""

    identity: Identity


def check_sound(path: Path, past: Remains) -> None:
    """Raises: StoreCorrupt: a journal is damaged beyond an incomplete last record."""
    for damage in past.damages:
        if not damage.torn:
            raise StoreCorrupt(str(path / damage.file), f"byte {damage.offset}: {damage.reason}")


def read_past(path: Path) -> Past:
    """Read a run's journals, without a lock. The run may be in progress.

    Raises:
        RunDirectoryError: no run is here, or something else has the name of a file or folder of it.
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
    """Like `read_past`, and sync the journals first, so that all that is returned is durable even if its writer was
    killed.

    Raises:
        StoreWriteFailed: the sync failed; a power failure may lose records.
        RunDirectoryError, StoreCorrupt: as by `read_past`.
    """
    for file in journals(path).values():
        sync_file(file)
    sync_folder(path)
    return read_past(path)


def look_at(path: Path) -> Remains:
    """Read what can be read of a run, without a lock. The run may be in progress, or damaged in any way.

    Raises:
        RunDirectoryError: the directory holds no file of a run, or the system refuses to read it.
    """
    with refusing("RUN", path):
        return _look_at(path)


def _look_at(path: Path) -> Remains:
    if not path.is_dir() or not (run_file(path).exists() or checkpoints_folder(path).is_dir() or journals(path)):
        raise RunDirectoryError("RUN", str(path), "no run is here (no run.json, no journal, no checkpoints)")
    identity, damages = _identity(path)  # read before the journals, whose content can only be newer
    files = journals(path)
    newest = _newest(path, files, identity)
    damages += _missing(path, files, newest)
    strange = {name: Damage(name, None, what) for name, what in misplaced(path).items()}
    said: dict[int, list[Entry]] = {}
    for generation, file in files.items():
        try:
            said[generation], damaged = _read(file)
            damages += damaged
        except StoreCorrupt as error:
            damages.append(Damage(file.name, None, error.reason))
    valid = _valid(said)
    damages = [_not_torn(damage, valid) for damage in damages]
    damages += _cut_off({number: files[number] for number in said}, valid)
    entries, undecided = _joined(path, said, valid, {damage.file for damage in damages if not damage.torn})
    did = [{entry.kind for entry in its_entries} for its_entries in said.values()]  # also those taken back
    commits, newest_lost = committed(entries), newest > 0 and newest not in said
    in_doubt = any(not damage.torn for damage in (*damages, *undecided))
    due = commits[-1:] if in_doubt else _due(said, valid)
    put_aside = _names(checkpoints_folder(path) / QUARANTINE) - {one.file for one in due[-1:]}
    there = _names(checkpoints_folder(path)) | ({one.file for one in due if not newest_lost} - put_aside)
    return Remains(
        identity if identity is not None else _told(entries),
        newest,
        tuple(entries),
        tuple(one for one in commits if one.file in there),
        (*strange.values(), *(d for d in (*damages, *undecided, *_no_summary(path)) if d.file not in strange)),
        sum(RecordKind.RUN_RESUMED in kinds for kinds in did),
        sum(RecordKind.ROLLED_BACK in kinds for kinds in did),
        sum(_restarts(entry) for its_entries in said.values() for entry in its_entries),
        newest_lost,
    )


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def committed(entries: Iterable[Entry]) -> list[CheckpointWritten]:
    """Return every checkpoint that was ever committed, oldest first, including dropped ones."""
    return [CheckpointWritten.model_validate(e.body) for e in entries if e.kind is RecordKind.CHECKPOINT_COMMITTED]


def _restarts(entry: Entry) -> int:
    """How many restarts of actors a record counts."""
    if entry.kind is RecordKind.ACTOR_RESTARTED:
        return len(entry.body["actors"])
    return int(entry.kind is RecordKind.DIED_STARTING)


def lasting_level(entries: Iterable[Entry]) -> Level | None:
    """The emergency level that still applies. A HALT does not outlive the run that it ended: a resume is deliberate."""
    return level(e for e in entries if e.kind is not RecordKind.SIGNAL or e.body["level"] < Level.HALT)


def level(entries: Iterable[Entry]) -> Level | None:
    """The highest emergency level in the journal. None: there was no signal."""
    return max((Level(entry.body["level"]) for entry in entries if entry.kind is RecordKind.SIGNAL), default=None)


# -- files -------------------------------------------------------------------------------------------------------


def _identity(path: Path) -> tuple[Identity | None, list[Damage]]:
    file = run_file(path)
    if not file.is_file():
        return None, [Damage(file.name, None, "is missing")]
    try:
        return load_identity(path), []
    except StoreCorrupt as error:
        return None, [Damage(file.name, None, error.reason)]
    except RunDirectoryError as error:
        return None, [Damage(file.name, None, error.mend)]


def _no_summary(path: Path) -> list[Damage]:
    """Damage if `summary.json` exists and is not a summary. No part of the valid history depends on that file."""
    file = summary_file(path)
    if not file.exists():
        return []
    try:
        content = json.loads(read_small(file))
    except OSError as error:
        return [Damage(file.name, None, f"cannot be read: {error.strerror}")]
    except (ValueError, RecursionError, StoreCorrupt):  # not JSON, nested too deeply, or too large
        content = None
    if isinstance(content, dict) and "weights_sha256" in content:
        return []
    reason = "is no summary of a run; remove it: `esper resume` writes that of a finished run again"
    return [Damage(file.name, None, reason)]


def _newest(path: Path, there: Collection[int], identity: Identity | None) -> int:
    """Return the number of the newest journal that must exist. 0: the run died before it made the first one."""
    newest = max([*there, identity.generation if identity is not None else FIRST_GENERATION])
    later = (checkpoints_folder(path), reports_folder(path), summary_file(path))
    died_early = newest == FIRST_GENERATION and not there and not any(file.exists() for file in later)
    return 0 if died_early and identity is not None else newest


def _missing(path: Path, there: Iterable[int], newest: int) -> list[Damage]:
    """Return one damage for each gap in the numbers of the journals."""
    damages, expected = [], FIRST_GENERATION
    for generation in (*there, newest + 1):
        if generation > expected:
            last = journal_file(path, generation - 1).name
            reason = "is missing" if generation - 1 == expected else f"is missing, as are all up to {last}"
            damages.append(Damage(journal_file(path, expected).name, None, reason))
        expected = generation + 1
    return damages


def _read(file: Path) -> tuple[list[Entry], list[Damage]]:
    size = file.stat().st_size if file.exists() else 0  # before the reading: the file may grow
    entries, errors = read(file)
    damages = [Damage(file.name, e.offset, e.reason, torn=e.offset + e.length >= size) for e in errors]
    misfits = {entry.offset: reason for entry in entries if (reason := misfit(entry))}
    damages += [Damage(file.name, offset, reason) for offset, reason in misfits.items()]
    return [entry for entry in entries if entry.offset not in misfits], damages


def _cut_off(files: Mapping[int, Path], valid: Mapping[int, int]) -> list[Damage]:
    """Return the journals that are shorter than a later generation recorded."""
    sizes = {number: file.stat().st_size for number, file in files.items() if number in valid}
    return [
        Damage(files[number].name, size, f"ends here; {valid[number] - size} more bytes were there")
        for number, size in sizes.items()
        if size < valid[number]
    ]


def _not_torn(damage: Damage, valid: Mapping[int, int]) -> Damage:
    """Return the damage with `torn` False if it is within the recorded length: up to there the journal was readable."""
    lasts = damage.torn and damage.offset is not None and damage.offset < valid.get(generation_of(Path(damage.file)), 0)
    return replace(damage, torn=False) if lasts else damage


def _due(said: Mapping[int, Sequence[Entry]], valid: Mapping[int, int]) -> list[CheckpointWritten]:
    """Checkpoints that retention leaves: that of fence 0, and the newest of those that were valid when it last dropped
    some."""
    due: list[CheckpointWritten] = []
    keep = 1
    for generation, its_entries in said.items():
        for entry in its_entries:
            if generation in valid and entry.end > valid[generation]:
                break
            if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED):
                keep = kept_newest(entry)
            elif entry.kind is RecordKind.SUPERSEDED:
                back_at = entry.body["from_fence"]
                due = [one for one in due if back_at is not None and one.fence <= back_at]
            elif entry.kind is RecordKind.CHECKPOINT_COMMITTED:
                due.append(CheckpointWritten.model_validate(entry.body))
                due = [one for place, one in enumerate(due, start=keep - len(due)) if one.fence == 0 or place >= 0]
    return due


def _told(entries: Sequence[Entry]) -> Identity | None:
    """Return the content of `run.json` from the journals: each process that ran the run wrote it there, too."""
    bodies = [entry.body for entry in entries if entry.kind in (RecordKind.RUN_STARTED, RecordKind.RUN_RESUMED)]
    try:
        return Identity.model_validate_json(json.dumps(bodies[-1])) if bodies else None
    except ValidationError:  # written by another version
        return None


# -- generations -------------------------------------------------------------------------------------------------


def _valid(said: Mapping[int, Sequence[Entry]]) -> dict[int, int]:
    """Return the valid length of each older journal in bytes: the smallest that a later generation recorded."""
    valid: dict[int, int] = {}
    for entry in (entry for its_entries in said.values() for entry in its_entries):
        if entry.kind is RecordKind.SUPERSEDED:
            for older, length in entry.body["lengths"].items():
                valid[int(older)] = min(length, valid.get(int(older), length))
    return valid


def _joined(
    path: Path, said: Mapping[int, Sequence[Entry]], valid: Mapping[int, int], damaged: Collection[str]
) -> tuple[list[Entry], list[Damage]]:
    """Return the valid records of all journals, and a damage for each journal that leaves them ambiguous."""
    entries: list[Entry] = []
    undecided: list[Damage] = []
    for generation, its_entries in said.items():
        name, lost = journal_file(path, generation).name, ""
        counted = [e for e in its_entries if generation not in valid or e.end <= valid[generation]]
        place = next((place for place, entry in enumerate(counted) if entry.kind is RecordKind.SUPERSEDED), None)
        if place is not None:  # the first generation has no SUPERSEDED, nor has one whose takeover failed
            entries, lost = _up_to([*entries, *counted[:place]], counted[place].body["from_fence"])
            counted = counted[place:]
        elif generation > FIRST_GENERATION and counted and name in damaged:
            lost = "its record of what counts of the older journals cannot be read"
        undecided += [Damage(name, None, lost)] if lost else []
        entries += counted
    return entries, undecided


def _up_to(entries: list[Entry], fence: int | None) -> tuple[list[Entry], str]:
    """Return the records that stay valid when a run continues from a fence; and, if they are ambiguous, the reason."""
    if fence is None:
        return [entry for entry in entries if entry.kind in (RecordKind.RUN_STARTED, RecordKind.SIGNAL)], ""
    end, lost = _end_of(entries, fence), ""
    if end is None:
        lost = f"it continues from fence {fence}, which the older journals do not contain"
        end = sum(
            1 for _ in takewhile(lambda e: e.kind is not RecordKind.ROUND_ENDED or e.body["fence"] <= fence, entries)
        )
    return [*entries[:end], *(entry for entry in entries[end:] if _stays(entry, fence))], lost


def _end_of(entries: Sequence[Entry], fence: int) -> int | None:
    """Return the index of the first record after a fence: after the BEGIN of its checkpoint, or after the COMMIT if
    BEGIN is damaged."""
    for kind in (RecordKind.CHECKPOINT_BEGUN, RecordKind.CHECKPOINT_COMMITTED):
        places = [place for place, e in enumerate(entries) if e.kind is kind and e.body["fence"] == fence]
        if places:
            return places[-1] + 1
    return None


def _stays(entry: Entry, fence: int) -> bool:
    """Whether a record stays valid although the run went back to an earlier fence.

    A COMMIT may be written late. A signal came from outside the run, so going back does not undo it.
    """
    committed_late = entry.kind is RecordKind.CHECKPOINT_COMMITTED and entry.body["fence"] <= fence
    return committed_late or entry.kind is RecordKind.SIGNAL
