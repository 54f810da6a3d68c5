"""Records of a saved state, in memory or on disk. The checksum in a record verifies the checkpoint file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from esper.leyline.base import Count, Message

QUARANTINE = "quarantine"
"""Subfolder of the checkpoints folder for checkpoints that do not load."""


class StateCopied(Message):
    """Record of a copy of the live host's state into memory at a fence, or of a restore from that copy."""

    fence: int
    step: int
    generation: int
    tensor_bytes: int
    seconds: float
    """Duration of the copy or of the restore."""


class CheckpointWritten(Message):
    """Record of a new checkpoint file that is durable. The checkpoint is valid once the journal has this record."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    """File name in the checkpoints folder; never a path."""
    length: Count
    """Size of the file in bytes."""
    crc: Count
    algorithm: str
    fence: Count
    step: Count
    generation: Count
    weights_crc32c: Count
    """CRC32C of all tensors of host and seeds; see `esper.ground.tensors.state_crc32c`."""
    topology_digest: str
    """SHA-256 of the grafted seeds and their settings, without ids. It is equal in two runs with the same growth."""
    seconds: float
    """Duration from the end of the copy in memory until the file is synced."""
