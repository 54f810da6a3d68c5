"""Checks whether a resume may change the length of a run, and from which checkpoints the run can go on."""

from __future__ import annotations

from esper.archive.history import Past
from esper.archive.journal import RecordKind
from esper.errors import ConfigError
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.setup.survey import Survey


def checkpoints_to_go_on_from(survey: Survey, past: Past) -> tuple[CheckpointWritten, ...]:
    """Return the committed checkpoints from which the run can go on, the oldest first. () if none was ever committed.

    Raises:
        ConfigError: the fences of the new length would be at other steps, no checkpoint is at one of its fences, or the
            last checkpoint lies within a tournament whose winner may be adopted.
    """
    steps, before, epochs = survey.fence_steps, past.identity.fence_steps, survey.config.run.epochs
    if steps[: len(before) - 1] != before[:-1]:
        mend = f"its rounds would end at other steps ({before[-1]} in all, {steps[-1]} now): lengthen it only"
        raise ConfigError("run.epochs", epochs, mend)
    commits = past.commits
    if steps != before and commits:
        _refuse_in_tournament(past, epochs)
        commits = tuple(one for one in commits if _tournament_at(past, one.fence) is None)
    fitting = tuple(one for one in commits if one.fence < len(steps) and steps[one.fence] == one.step)
    if past.commits and not fitting:
        raise ConfigError("run.epochs", epochs, "no checkpoint is at a fence of a run of this length")
    return fitting


def _refuse_in_tournament(past: Past, epochs: int | None) -> None:
    """Raises: ConfigError: the last checkpoint lies within a tournament whose winner may be adopted."""
    last = past.commits[-1].fence
    due = _tournament_at(past, last)
    if due is not None:
        mend = (
            f"the last checkpoint, of fence {last}, lies within a tournament, whose forks began with the schedule of"
            f" the shorter run. Resume the run without more epochs first, and lengthen it after fence {due}"
        )
        raise ConfigError("run.epochs", epochs, mend)


def _tournament_at(past: Past, fence: int) -> int | None:
    """Return the fence at which the tournament in flight at `fence` is due, if its winner may be adopted.

    The restore of a checkpoint trains the forks of such a tournament again, from the fence of their snapshot and with
    the schedule of the present length. The live host was trained up to the checkpoint with the schedule of the old
    length. If the two schedules differ, the control is not the live host, and no fork can be adopted. None: there is no
    such tournament. It may begin at `fence`, because its forks then begin at the host of the checkpoint.
    """
    orders = [entry.body for entry in past.entries if entry.kind is RecordKind.INCUBATION_BEGUN]
    due = [int(one["due_fence"]) for one in orders if one.get("adopts") and one["fence"] < fence < one["due_fence"]]
    return max(due) if due else None
