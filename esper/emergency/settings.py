"""Settings of the emergency queue."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from esper.leyline.base import Settings


class EmergencyConfig(Settings):
    """[emergency]"""

    capacity: Annotated[int, Field(ge=32, le=4096)] = Field(
        1024, description="largest number of signals in the queue; the last 16 places are for HALT"
    )
