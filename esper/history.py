"""What a run's journals say together: one generation after the other, without what a later one took back.

Whoever goes on with a run writes a journal of its own, and in its first record says from which fence it goes on and how
long the older journals were then: what a writer that should be dead adds to them later counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from esper.durable.log import LoadError
from esper.errors import StoreCorrupt
from esper.journal import Entry, Kind, read
from esper.leyline.checkpoints import CheckpointWritten
from esper.run_directory import checkpoints_folder, journal_file, journals
from esper.summary import Identity, load_identity


@dataclass(frozen=True)
class Past:
    """A run up to now."""

    identity: Identity
    generation: int
    """The newest."""
    entries: tuple[Entry, ...]
    """What counts, in order."""
    commits: tuple[CheckpointWritten, ...]
    """Checkpoints that were committed and are not dropped by retention, oldest first."""
    errors: tuple[LoadError, ...]
    """Every place in a journal that could not be read."""


def read_past(path: Path) -> Past:
    """Read a run's journals, without a lock; it may be going on.

    Raises:
        RunDirectoryError: no run is here.
        StoreCorrupt: `run.json` or a journal is none of ours, or there is no journal.
    """
    identity = load_identity(path)
    files = journals(path)
    if not files:
        raise StoreCorrupt(str(journal_file(path, identity.generation)), "is missing: nothing can be said of the run")
    found = {generation: read(file) for generation, file in files.items()}
    valid: dict[int, int] = {}
    for entry in (entry for its_entries, _ in found.values() for entry in its_entries):
        if entry.kind is Kind.SUPERSEDED:
            for older, length in entry.body["lengths"].items():  # the first to take over says what counts
                valid[int(older)] = min(length, valid.get(int(older), length))
    entries: list[Entry] = []
    for generation, (its_entries, _) in found.items():
        for entry in its_entries:
            if generation in valid and entry.offset >= valid[generation]:
                break
            if entry.kind is Kind.SUPERSEDED:
                entries = _up_to(entries, entry.body["from_fence"])
            entries.append(entry)
    commits = [CheckpointWritten.model_validate(e.body) for e in entries if e.kind is Kind.CHECKPOINT_COMMITTED]
    folder = checkpoints_folder(path)
    errors = tuple(error for _, damaged in found.values() for error in damaged)
    there = tuple(one for one in commits if one is commits[-1] or (folder / one.file).exists())
    return Past(identity, max(files), tuple(entries), there, errors)


def _up_to(entries: list[Entry], fence: int | None) -> list[Entry]:
    """What counts of the past when a run goes on from a fence: all up to its checkpoint, and the COMMITs of those."""
    if fence is None:
        return [entry for entry in entries if entry.kind is Kind.RUN_STARTED]
    at_fence = {Kind.CHECKPOINT_BEGUN, Kind.CHECKPOINT_COMMITTED}
    marks = [place for place, e in enumerate(entries) if e.kind in at_fence and e.body["fence"] == fence]
    begun = [place for place in marks if entries[place].kind is Kind.CHECKPOINT_BEGUN]
    if not marks:
        raise StoreCorrupt("journals", f"a later one goes on from fence {fence}, of which the older ones say nothing")
    last = (begun or marks)[-1]  # its BEGIN may be damaged
    later = [e for e in entries[last + 1 :] if e.kind is Kind.CHECKPOINT_COMMITTED and e.body["fence"] <= fence]
    return [*entries[: last + 1], *later]
