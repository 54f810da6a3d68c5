"""Verifies the checkpoints of a run by reading each whole file. It changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.archive.inspection import still_kept
from esper.archive.run_directory import checkpoints_folder
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.tolaria.checkpoint_file import verify_all


def verdicts(path: Path, commits: Sequence[CheckpointWritten]) -> list[dict[str, Any]]:
    """Return the verdict of `verify_all` for each checkpoint of a run. Checkpoints that the run drops during the
    verification are left out.
    """
    found = verify_all(checkpoints_folder(path), commits)
    bad = still_kept(path, {one["file"] for one in found if not one["ok"]})
    return [one for one in found if one["ok"] or one["file"] in bad]
