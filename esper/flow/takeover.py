"""Takes over a run that is resumed. The order of the steps ensures that the run has one owner at any moment.

`esper.archive.history` has read the valid history before. Until SUPERSEDED is durable, the run belongs to its last
owner. Only one change is made before that. Checkpoints that cannot be restored are moved to quarantine, because `sweep`
would otherwise remove them together with all other invalid files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from esper import faults
from esper.archive.history import Past
from esper.archive.identity import Identity
from esper.archive.journal import Journal, RecordKind
from esper.archive.run_directory import reports_folder, summary_file
from esper.flow.checkpoints import Checkpoints, FenceState, Trial
from esper.tamiyo.field_reports import load_reports, tell_missing
from esper.telemetry.events import Severity, severe


@dataclass(frozen=True)
class TakenOver:
    """State from which a run resumes, and the findings of the takeover."""

    saved: FenceState | None
    """None: no checkpoint was ever committed, so the run begins again at fence 0."""
    told: tuple[str, ...]
    """Findings to show to people, one line each."""


def take_over(
    path: Path,
    past: Past,
    journal: Journal,
    checkpoints: Checkpoints,
    identity: Identity,
    trial: Trial | None = None,
) -> TakenOver:
    """Begin a new valid generation at the last checkpoint that loads and passes the trial.

    Raises:
        RestoreImpossible: checkpoints were committed, and none of them loads.
        StoreWriteFailed: the new generation could not be made valid; the run is unchanged.
    """
    told = [f"damaged: {damage}" for damage in past.damages]
    for damage in past.damages:
        level = Severity.WARNING if damage.torn else Severity.ERROR
        severe("journal_damaged", level, file=damage.file, offset=damage.offset, reason=damage.reason)
    told += _damaged_reports(path, past)
    saved = checkpoints.load_latest(trial) if past.commits else None
    fence = saved.fence if saved is not None else None
    told += [f"passed over: {written.file} does not load" for written in past.commits[len(checkpoints.committed) :]]
    journal.supersede(fence)
    faults.point("conductor.supersede")
    summary_file(path).unlink(missing_ok=True)  # the file exists if the run had ended and is now made longer
    identity.save(path)
    if not past.damaged:  # if records were lost, the COMMIT of a swept file could be among them
        told += [f"removed: {file}, which was never committed" for file in checkpoints.sweep()]
    faults.point("conductor.resume")
    journal.write(RecordKind.RUN_RESUMED, identity)
    return TakenOver(
        saved, (*told, f"continues from fence {fence}" if saved is not None else "begins again at fence 0")
    )


def _damaged_reports(path: Path, past: Past) -> list[str]:
    """Report the damage of the store of field reports. Return a line for each finding."""
    folder = reports_folder(path)
    loaded = load_reports(folder)
    bodies = (entry.body for entry in past.entries if entry.kind is RecordKind.FIELD_REPORT)
    journalled = [body["report_id"] for body in bodies if "report_id" in body]
    lines = [f"damaged: {one.file.name}: {one.reason}" for one in loaded.errors]
    return [*lines, *tell_missing(folder, loaded, journalled)]
