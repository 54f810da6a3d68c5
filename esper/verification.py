"""Which checkpoints of a run load. Each is read whole; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.inspection import still_kept
from esper.leyline.checkpoints import CheckpointWritten
from esper.run_directory import checkpoints_folder
from esper.tolaria.checkpoint import verify_all


def verdicts(path: Path, commits: Sequence[CheckpointWritten]) -> list[dict[str, Any]]:
    """Which checkpoints of a run load (see `verify_all`), without those that retention drops meanwhile."""
    found = verify_all(checkpoints_folder(path), commits)
    bad = still_kept(path, {one["file"] for one in found if not one["ok"]})
    return [one for one in found if one["ok"] or one["file"] in bad]
