"""Settings of a run's checkpoints: the table [checkpoint]."""

from __future__ import annotations

from pydantic import Field

from esper.leyline.base import Seconds, Settings


class CheckpointConfig(Settings):
    """[checkpoint]"""

    every_rounds: int = Field(1, ge=1, description="a checkpoint is made every this many rounds; changes no bits")
    keep: int = Field(
        2, ge=2, description="number of newest checkpoints that stay on disk, in addition to that of fence 0"
    )
    fast_rollback_s: Seconds = Field(0.5, description="time limit of a rollback from memory, in seconds")
    full_rollback_s: Seconds = Field(12.0, description="time limit of a rollback from disk, in seconds")
