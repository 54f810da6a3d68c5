"""Types of emergency signals, which any part of a run may send."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from esper.leyline.base import Message


class Level(IntEnum):
    """Urgency of a signal; higher levels are delivered first. HALT stops training at the next step boundary."""

    NOTICE = 1
    ELEVATED = 2
    CONSERVATIVE = 3
    HALT = 4


class EmergencySignal(Message):
    """One signal. A repeated `signal_id` is the same signal and has no further effect."""

    signal_id: Annotated[str, Field(min_length=1, max_length=512)]
    run_id: str
    generation: Annotated[int, Field(ge=0)]
    level: Level
    origin: Annotated[str, Field(max_length=512)]
    """Role of the process that sends the signal."""
    reason: Annotated[str, Field(max_length=4096)]
    issued_at: AwareDatetime
    traceparent: str = ""
