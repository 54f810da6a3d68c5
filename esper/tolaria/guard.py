"""Stops training when the loss or the gradient norm of a step is infinite or NaN."""

from __future__ import annotations

import math

from esper.errors import DivergenceUnrecoverable
from esper.telemetry.events import Severity, reported
from esper.telemetry.metrics import count


def check_finite(step: int, loss: float, gradient_norm: float) -> None:
    """Refuse a step with a loss or gradient norm that is not finite.

    Call it after the backward pass, before the update.

    Raises:
        DivergenceUnrecoverable: the loss or the gradient norm is not finite. No parameter was updated.
    """
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    what, value = ("gradient_norm", gradient_norm) if math.isfinite(loss) else ("loss", loss)
    count("esper.guard.trips")
    error = DivergenceUnrecoverable(step, what, value)
    raise reported(error, "guard_tripped", Severity.CRITICAL, step=step, what=what, value=str(value))
