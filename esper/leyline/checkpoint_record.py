"""What is said of a kept state: in memory, and on disk. The record of a file is what its checksum is proved against."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from esper.leyline.base import Count, Message

QUARANTINE = "quarantine"
"""Folder, in that of the checkpoints, for those that do not load."""


class MemoryCopy(Message):
    """The live host's state was copied into memory at a fence, or restored from there."""

    fence: int
    step: int
    generation: int
    tensor_bytes: int
    seconds: float
    """Of the copy or, where it was restored, of the restore."""


class CheckpointWritten(Message):
    """A checkpoint is durable under a name that was never used before. It counts once this record is committed."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    """Name in the folder of checkpoints; never a path."""
    length: Count
    """Bytes."""
    crc: Count
    algorithm: str
    fence: Count
    step: Count
    generation: Count
    weights_crc32c: Count
    """Of all tensors of host and seeds; see `esper.ground.tensors.state_crc32c`."""
    topology_digest: str
    """SHA-256 over what is grafted and how, without ids: equal in two runs that grew alike."""
    seconds: float
    """From the copy in memory to the synced file."""
