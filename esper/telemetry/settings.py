"""The config table of telemetry."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from esper.leyline.base import Settings


class TelemetryConfig(Settings):
    """[telemetry]"""

    enabled: bool = Field(True, description="write spans and severe events to RUN/telemetry")
    prometheus_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None, description="port on which Prometheus can read the metrics of the run; 0: a free port; not set: none"
    )
    prometheus_host: str = Field(
        "127.0.0.1", min_length=1, description="address of this machine on which that port is open"
    )
    step_every: Annotated[int, Field(ge=1)] = Field(
        100, description="number of steps from one training step with a span to the next"
    )
