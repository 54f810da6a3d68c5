"""Is training still finite? It looks at every step's loss and gradient norm and raises; it mends nothing."""

from __future__ import annotations

import math

from esper.errors import DivergenceUnrecoverable
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count


def check_finite(step: int, loss: float, gradient_norm: float) -> None:
    """Let a step's update happen only if its loss and gradient are finite.

    Raises:
        DivergenceUnrecoverable: one of them is not; no parameter has been updated by this step.
    """
    for what, value in (("loss", loss), ("gradient_norm", gradient_norm)):
        if not math.isfinite(value):
            count("esper.guard.trips")
            error = DivergenceUnrecoverable(step, what, value)
            raise reported(error, "guard_tripped", Severity.CRITICAL, step=step, what=what, value=str(value))
