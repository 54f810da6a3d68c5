"""Selects the valid records in the journals of several generations. A record is valid unless a later generation took it
back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from esper.archive.damage import Damage
from esper.archive.journal import FIRST_GENERATION, Entry, RecordKind
from esper.archive.journal_schema import kept_newest
from esper.archive.run_directory import generation_of, journal_file
from esper.leyline.checkpoint_record import CheckpointWritten


def retained(said: Mapping[int, Sequence[Entry]], valid: Mapping[int, int]) -> list[CheckpointWritten]:
    """Return the checkpoints that retention does not drop. These are the checkpoint of fence 0, and the newest
    checkpoints that were valid at the last drop.
    """
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


def cut_short(files: Mapping[int, Path], valid: Mapping[int, int]) -> list[Damage]:
    """Return a `Damage` for each journal that is shorter than the length that a later generation recorded."""
    sizes = {number: file.stat().st_size for number, file in files.items() if number in valid}
    return [
        Damage(files[number].name, size, f"ends here; {valid[number] - size} more bytes were there")
        for number, size in sizes.items()
        if size < valid[number]
    ]


def as_recorded(damage: Damage, valid: Mapping[int, int]) -> Damage:
    """Return the damage. If it lies within the recorded length, its `torn` becomes False, because the journal was
    readable up to that length.
    """
    lasts = damage.torn and damage.offset is not None and damage.offset < valid.get(generation_of(Path(damage.file)), 0)
    return replace(damage, torn=False) if lasts else damage


def valid_lengths(said: Mapping[int, Sequence[Entry]]) -> dict[int, int]:
    """Return the valid length of each older journal in bytes. If several later generations recorded a length, the
    smallest is valid.
    """
    valid: dict[int, int] = {}
    for entry in (entry for its_entries in said.values() for entry in its_entries):
        if entry.kind is RecordKind.SUPERSEDED:
            for older, length in entry.body["lengths"].items():
                valid[int(older)] = min(length, valid.get(int(older), length))
    return valid


def joined_entries(
    path: Path, said: Mapping[int, Sequence[Entry]], valid: Mapping[int, int], damaged: Collection[str]
) -> tuple[list[Entry], list[Damage]]:
    """Return the valid records of all journals. Also return a `Damage` for each journal that leaves unclear which
    records are valid.
    """
    entries: list[Entry] = []
    undecided: list[Damage] = []
    for generation, its_entries in said.items():
        name, lost = journal_file(path, generation).name, ""
        counted = [e for e in its_entries if generation not in valid or e.end <= valid[generation]]
        place = next((place for place, entry in enumerate(counted) if entry.kind is RecordKind.SUPERSEDED), None)
        # neither the first generation nor a generation whose takeover failed has a SUPERSEDED
        if place is not None:
            entries, lost = _up_to([*entries, *counted[:place]], counted[place].body["from_fence"])
            counted = counted[place:]
        elif generation > FIRST_GENERATION and counted and name in damaged:
            lost = "its SUPERSEDED record cannot be read"
        undecided += [Damage(name, None, lost)] if lost else []
        entries += counted
    return entries, undecided


def _up_to(entries: list[Entry], fence: int | None) -> tuple[list[Entry], str]:
    """Return the records that stay valid if a run continues from a fence. Also return the reason if it is unclear which
    records stay valid.
    """
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
    """Return the index of the first record after a fence. A fence ends at the BEGIN of its checkpoint, or at the COMMIT
    if BEGIN is damaged."""
    for kind in (RecordKind.CHECKPOINT_BEGUN, RecordKind.CHECKPOINT_COMMITTED):
        places = [place for place, e in enumerate(entries) if e.kind is kind and e.body["fence"] == fence]
        if places:
            return places[-1] + 1
    return None


def _stays(entry: Entry, fence: int) -> bool:
    """Return whether a record stays valid although the run went back to an earlier fence.

    A late COMMIT of an earlier fence stays valid. A signal stays valid, too, because it came from outside the run.
    """
    committed_late = entry.kind is RecordKind.CHECKPOINT_COMMITTED and entry.body["fence"] <= fence
    return committed_late or entry.kind is RecordKind.SIGNAL
