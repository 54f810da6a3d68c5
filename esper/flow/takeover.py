"""How whoever goes on with a run takes it over: in which order, so that it is one owner's at every instant.

What counts of the past was read before (`esper.archive.history`). Until SUPERSEDED is durable the run is its last
owner's. Only checkpoints that cannot be restored are moved before that, to quarantine: `sweep` removes what no longer
counts, and would remove them as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from esper import faults
from esper.archive.history import Past
from esper.archive.identity import Identity
from esper.archive.journal import Journal, RecordKind
from esper.archive.run_directory import summary_file
from esper.flow.checkpoints import Checkpoints, FenceState, Trial
from esper.telemetry.events import Severity, severe


@dataclass(frozen=True)
class TakenOver:
    """Where a run goes on, and what was found on the way there."""

    kept: FenceState | None
    """None: nothing was ever committed, and it begins again at fence 0."""
    told: tuple[str, ...]
    """What people should know, one line each."""


def take_over(
    path: Path,
    past: Past,
    journal: Journal,
    checkpoints: Checkpoints,
    identity: Identity,
    trial: Trial | None = None,
) -> TakenOver:
    """Make a new generation the one that counts, from the last checkpoint that loads and passes the trial.

    Raises:
        RestoreImpossible: checkpoints were committed and none of them loads.
        StoreWriteFailed: the new generation could not be made to count; the run is as it was.
    """
    told = [f"damaged: {damage}" for damage in past.damages]
    for damage in past.damages:
        level = Severity.WARNING if damage.torn else Severity.ERROR
        severe("journal_damaged", level, file=damage.file, offset=damage.offset, reason=damage.reason)
    kept = checkpoints.load_latest(trial) if past.commits else None
    fence = kept.fence if kept is not None else None
    told += [f"passed over: {written.file} does not load" for written in past.commits[len(checkpoints.committed) :]]
    journal.supersede(fence)
    faults.point("conductor.supersede")
    summary_file(path).unlink(missing_ok=True)  # of a run that is longer now
    identity.save(path)
    if not past.damaged:  # else a record of what lies there may be what is lost
        told += [f"removed: {file}, which was never committed" for file in checkpoints.sweep()]
    faults.point("conductor.resume")
    journal.write(RecordKind.RUN_RESUMED, identity)
    return TakenOver(kept, (*told, f"goes on from fence {fence}" if kept is not None else "begins again at fence 0"))
