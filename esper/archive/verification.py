"""Verifies the checkpoints of a run: reads each whole file. It changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.archive.inspection import still_kept
from esper.archive.run_directory import checkpoints_folder
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.tolaria.checkpoint_file import verify_all


def verdicts(path: Path, commits: Sequence[CheckpointWritten]) -> list[dict[str, Any]]:
    """Return which checkpoints of a run load (see `verify_all`), without those that the run drops meanwhile."""
    found = verify_all(checkpoints_folder(path), commits)
    bad = still_kept(path, {one["file"] for one in found if not one["ok"]})
    return [one for one in found if one["ok"] or one["file"] in bad]
