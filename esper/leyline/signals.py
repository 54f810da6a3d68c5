"""Emergency signals: what anyone may say that everyone must hear. Shapes only."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from esper.leyline.base import Message


class Level(IntEnum):
    """How urgent; higher goes out first. HALT stops training at the next step boundary."""

    NOTICE = 1
    ELEVATED = 2
    CONSERVATIVE = 3
    HALT = 4


class EmergencySignal(Message):
    """One signal. The same `signal_id` again is the same signal: harmless."""

    signal_id: Annotated[str, Field(min_length=1, max_length=512)]
    run_id: str
    generation: Annotated[int, Field(ge=0)]
    level: Level
    origin: Annotated[str, Field(max_length=512)]
    """Role that publishes it."""
    reason: Annotated[str, Field(max_length=4096)]
    issued_at: AwareDatetime
    traceparent: str = ""
