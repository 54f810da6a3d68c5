"""What a run's journals say together: one generation after the other, without what a later one took back.

Whoever goes on with a run writes a journal of its own, and in its first record says from which fence it goes on and how
long the older journals were then: what a writer that should be dead adds to them later counts for nothing.

`read_past` is for whoever goes on: it refuses where it is open what counts. `look_at` is for showing: what can still be
read of a damaged run, and all that cannot.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from pydantic import ValidationError

from esper.archive.identity import Identity, load_identity
from esper.archive.journal import FIRST_GENERATION, Entry, Kind, read
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
    """Something of a run directory that cannot be read."""

    file: str
    """Its name there."""
    offset: int | None
    """Where the unreadable stretch begins, in bytes. None: the whole file, and it is open what of the run counts."""
    reason: str
    torn: bool = False
    """It is the end of a journal: an append that was cut short, or goes on right now, and was not acknowledged."""

    def __str__(self) -> str:
        place = f", byte {self.offset}" if self.offset is not None else ""
        return f"{self.file}{place}: {self.reason}"


@dataclass(frozen=True)
class Remains:
    """As much of a run up to now as can be read. To be shown; nothing may be decided by it."""

    identity: Identity | None
    """By the journals, if not by `run.json`."""
    generation: int
    """The newest; 0: the run was begun, and died before it had a journal."""
    entries: tuple[Entry, ...]
    """What counts, in order."""
    commits: tuple[CheckpointWritten, ...]
    """Checkpoints that were committed and are there, or should be, oldest first."""
    damages: tuple[Damage, ...]
    """Every place in a journal that could not be read."""
    resumes: int
    """How often it was gone on with."""
    rollbacks: int
    restarts: int
    """Of actors."""
    newest_lost: bool
    """Nothing can be read of the newest journal: how far the run came, and whether it ended, is not known."""

    @property
    def damaged(self) -> bool:
        """More is lost than the end of an append that nobody acknowledged."""
        return any(not damage.torn for damage in self.damages)


@dataclass(frozen=True)
class Past(Remains):
    """A run up to now, of which it is clear what counts."""

    identity: Identity


def check_sound(path: Path, past: Remains) -> None:
    """Raises: StoreCorrupt: more of a journal is damaged than the end of an append that nobody acknowledged."""
    for damage in past.damages:
        if not damage.torn:
            raise StoreCorrupt(str(path / damage.file), f"byte {damage.offset}: {damage.reason}")


def read_past(path: Path) -> Past:
    """Read a run's journals, without a lock; it may be going on.

    Raises:
        RunDirectoryError: no run is here, or something else has the name of a file or folder of it.
        StoreCorrupt: `run.json` or a journal is none of ours or missing, it is open what of a journal counts, or
            `summary.json` is no summary.
    """
    refuse_misplaced(path)
    load_identity(path)
    found = look_at(path)
    for damage in found.damages:
        if damage.offset is None:
            raise StoreCorrupt(str(path / damage.file), damage.reason)
    return Past(**vars(found))


def settled_past(path: Path) -> Past:
    """`read_past` for whoever goes on from it: what it says is durable then, even if its writer was killed.

    Raises:
        StoreWriteFailed: a power failure may take some of it back.
        RunDirectoryError, StoreCorrupt: as by `read_past`.
    """
    for file in journals(path).values():
        sync_file(file)
    sync_folder(path)
    return read_past(path)


def look_at(path: Path) -> Remains:
    """Read what can be read of a run, without a lock; it may be going on, or damaged in any way.

    Raises:
        RunDirectoryError: nothing of a run is here, or the system does not let it be read.
    """
    with refusing("RUN", path):
        return _look_at(path)


def _look_at(path: Path) -> Remains:
    if not path.is_dir() or not (run_file(path).exists() or checkpoints_folder(path).is_dir() or journals(path)):
        raise RunDirectoryError("RUN", str(path), "no run is here (no run.json, no journal, no checkpoints)")
    identity, damages = _identity(path)  # before the journals: theirs can only be newer
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
    did = [{entry.kind for entry in its_entries} for its_entries in said.values()]  # what was taken back included
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
        sum(Kind.RUN_RESUMED in kinds for kinds in did),
        sum(Kind.ROLLED_BACK in kinds for kinds in did),
        sum(_restarts(entry) for its_entries in said.values() for entry in its_entries),
        newest_lost,
    )


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def committed(entries: Iterable[Entry]) -> list[CheckpointWritten]:
    """Every checkpoint that was ever committed, oldest first; also those that are dropped by now."""
    return [CheckpointWritten.model_validate(e.body) for e in entries if e.kind is Kind.CHECKPOINT_COMMITTED]


def _restarts(entry: Entry) -> int:
    """How many actors a record says were started again after a death."""
    if entry.kind is Kind.ACTOR_RESTARTED:
        return len(entry.body["actors"])
    return int(entry.kind is Kind.DIED_STARTING)


def lasting_level(entries: Iterable[Entry]) -> Level | None:
    """The emergency level that still holds. A HALT has done its work: who goes on after it means to."""
    return level(e for e in entries if e.kind is not Kind.SIGNAL or e.body["level"] < Level.HALT)


def level(entries: Iterable[Entry]) -> Level | None:
    """The highest emergency level that was heard; None: no signal was."""
    return max((Level(entry.body["level"]) for entry in entries if entry.kind is Kind.SIGNAL), default=None)


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
    """Damage where `summary.json` is there and is no summary. Nothing that counts is read from it."""
    file = summary_file(path)
    if not file.exists():
        return []
    try:
        content = json.loads(read_small(file))
    except OSError as error:
        return [Damage(file.name, None, f"cannot be read: {error.strerror}")]
    except (ValueError, RecursionError, StoreCorrupt):  # no JSON, nested deeper than anything of ours, or too large
        content = None
    if isinstance(content, dict) and "weights_sha256" in content:
        return []
    reason = "is no summary of a run; remove it: `esper resume` writes that of a finished run again"
    return [Damage(file.name, None, reason)]


def _newest(path: Path, there: Collection[int], identity: Identity | None) -> int:
    """The newest journal that there should be; 0 if the run left nothing that comes after the making of its first."""
    newest = max([*there, identity.generation if identity is not None else FIRST_GENERATION])
    later = (checkpoints_folder(path), reports_folder(path), summary_file(path))
    died_early = newest == FIRST_GENERATION and not there and not any(file.exists() for file in later)
    return 0 if died_early and identity is not None else newest


def _missing(path: Path, there: Iterable[int], newest: int) -> list[Damage]:
    """Each gap in the row of journals, by its first."""
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
    """Journals that are shorter than they were when a later one took over."""
    sizes = {number: file.stat().st_size for number, file in files.items() if number in valid}
    return [
        Damage(files[number].name, size, f"ends here; {valid[number] - size} more bytes were there")
        for number, size in sizes.items()
        if size < valid[number]
    ]


def _not_torn(damage: Damage, valid: Mapping[int, int]) -> Damage:
    """Whoever took over said how far the journal could be read then: what lies before that was whole once."""
    lasts = damage.torn and damage.offset is not None and damage.offset < valid.get(generation_of(Path(damage.file)), 0)
    return replace(damage, torn=False) if lasts else damage


def _due(said: Mapping[int, Sequence[Entry]], valid: Mapping[int, int]) -> list[CheckpointWritten]:
    """Checkpoints that retention has left: fence 0 and the newest of those that counted when it dropped others."""
    due: list[CheckpointWritten] = []
    keep = 1
    for generation, its_entries in said.items():
        for entry in its_entries:
            if generation in valid and entry.end > valid[generation]:
                break
            if entry.kind in (Kind.RUN_STARTED, Kind.RUN_RESUMED):
                keep = kept_newest(entry)
            elif entry.kind is Kind.SUPERSEDED:
                back_at = entry.body["from_fence"]
                due = [one for one in due if back_at is not None and one.fence <= back_at]
            elif entry.kind is Kind.CHECKPOINT_COMMITTED:
                due.append(CheckpointWritten.model_validate(entry.body))
                due = [one for place, one in enumerate(due, start=keep - len(due)) if one.fence == 0 or place >= 0]
    return due


def _told(entries: Sequence[Entry]) -> Identity | None:
    """What `run.json` said: each process that ran the run journaled it."""
    bodies = [entry.body for entry in entries if entry.kind in (Kind.RUN_STARTED, Kind.RUN_RESUMED)]
    try:
        return Identity.model_validate_json(json.dumps(bodies[-1])) if bodies else None
    except ValidationError:  # of another version, as the run.json is that is named as damage
        return None


# -- generations -------------------------------------------------------------------------------------------------


def _valid(said: Mapping[int, Sequence[Entry]]) -> dict[int, int]:
    """The length up to which an older journal counts, in bytes: the first to take over says so."""
    valid: dict[int, int] = {}
    for entry in (entry for its_entries in said.values() for entry in its_entries):
        if entry.kind is Kind.SUPERSEDED:
            for older, length in entry.body["lengths"].items():
                valid[int(older)] = min(length, valid.get(int(older), length))
    return valid


def _joined(
    path: Path, said: Mapping[int, Sequence[Entry]], valid: Mapping[int, int], damaged: Collection[str]
) -> tuple[list[Entry], list[Damage]]:
    """What counts of all journals together; and the journals of which it is open what they took over."""
    entries: list[Entry] = []
    undecided: list[Damage] = []
    for generation, its_entries in said.items():
        name, lost = journal_file(path, generation).name, ""
        counted = [e for e in its_entries if generation not in valid or e.end <= valid[generation]]
        place = next((place for place, entry in enumerate(counted) if entry.kind is Kind.SUPERSEDED), None)
        if place is not None:  # a late COMMIT may come before it
            entries, lost = _up_to([*entries, *counted[:place]], counted[place].body["from_fence"])
            counted = counted[place:]
        elif generation > FIRST_GENERATION and counted and name in damaged:
            lost = "its record of what counts of the older journals cannot be read"
        undecided += [Damage(name, None, lost)] if lost else []
        entries += counted
    return entries, undecided


def _up_to(entries: list[Entry], fence: int | None) -> tuple[list[Entry], str]:
    """What counts of the past when a run goes on from a fence; and why that is open, if it is."""
    if fence is None:
        return [entry for entry in entries if entry.kind in (Kind.RUN_STARTED, Kind.SIGNAL)], ""
    end, lost = _end_of(entries, fence), ""
    if end is None:
        lost = f"it goes on from fence {fence}, of which the older journals say nothing"
        end = sum(1 for _ in takewhile(lambda e: e.kind is not Kind.ROUND_ENDED or e.body["fence"] <= fence, entries))
    return [*entries[:end], *(entry for entry in entries[end:] if _stays(entry, fence))], lost


def _end_of(entries: Sequence[Entry], fence: int) -> int | None:
    """Where what belongs to a fence ends: behind the BEGIN of its checkpoint, or the COMMIT if that is damaged."""
    for kind in (Kind.CHECKPOINT_BEGUN, Kind.CHECKPOINT_COMMITTED):
        places = [place for place, e in enumerate(entries) if e.kind is kind and e.body["fence"] == fence]
        if places:
            return places[-1] + 1
    return None


def _stays(entry: Entry, fence: int) -> bool:
    """A record counts although the run went back to a fence before it.

    A COMMIT may come late. A signal came from outside: what was heard is not unheard.
    """
    committed_late = entry.kind is Kind.CHECKPOINT_COMMITTED and entry.body["fence"] <= fence
    return committed_late or entry.kind is Kind.SIGNAL
