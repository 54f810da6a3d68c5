"""How much the emergency queue holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class EmergencyConfig(BaseModel):
    """[emergency]"""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    capacity: Annotated[int, Field(ge=32)] = Field(1024, description="most signals held; the last 16 places are HALT's")
