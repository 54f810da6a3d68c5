"""The config table of telemetry."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from esper.leyline.base import Settings


class TelemetryConfig(Settings):
    """[telemetry]"""

    enabled: bool = Field(True, description="write spans and severe events to RUN/telemetry")
    step_every: Annotated[int, Field(ge=1)] = Field(
        100, description="number of steps from one training step with a span to the next"
    )
