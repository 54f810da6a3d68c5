"""Settings of a run's checkpoints: the table [checkpoint]."""

from __future__ import annotations

from pydantic import Field

from esper.leyline.base import Seconds, Settings


class CheckpointConfig(Settings):
    """[checkpoint]"""

    every_rounds: int = Field(1, ge=1, description="rounds between checkpoints; changes no bits")
    keep: int = Field(2, ge=2, description="newest checkpoints that are kept, beside that of fence 0")
    fast_rollback_s: Seconds = Field(0.5, description="longest rollback in memory, in seconds; no run uses it yet")
    full_rollback_s: Seconds = Field(12.0, description="longest rollback from disk, in seconds; no run uses it yet")
