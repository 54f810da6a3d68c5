"""Stops training when the loss or the gradient norm of a step is infinite or NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from esper.errors import DivergenceUnrecoverable
from esper.ground.closing import noted_on
from esper.ground.nested import tensors
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import count

LAST_LOSSES = 5
"""Number of losses before the failed step that are told."""


def check_finite(step: int, loss: float, gradient_norm: float) -> None:
    """Refuse a step with a loss or gradient norm that is not finite.

    Call it after the backward pass, before the update.

    Raises:
        DivergenceUnrecoverable: the loss or the gradient norm is not finite. No parameter was updated.
    """
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    what, value = ("gradient_norm", gradient_norm) if math.isfinite(loss) else ("loss", loss)
    raise DivergenceUnrecoverable(step, what, value)


def measure(error: DivergenceUnrecoverable, parts: Mapping[str, Any], losses: Sequence[float]) -> None:
    """Record in the error which values of the failed step were not finite, and the losses before it.

    Args:
        parts: "inputs", "targets" and "outputs" of the step, in any structure that holds tensors. A part without
            floating-point tensors has no count.
        losses: Losses of the steps before it in the same round.
    """
    with noted_on(error, "measuring the values of the step"):
        for part, value in parts.items():
            floats = [one.detach() for one in tensors(value) if one.is_floating_point() or one.is_complex()]
            if floats:
                bad = sum(int((~torch.isfinite(one)).sum()) for one in floats)
                error.measured.update({f"{part}_not_finite": bad, f"{part}_values": sum(one.numel() for one in floats)})
        if losses:
            error.measured["last_losses"] = [*losses[-LAST_LOSSES:]]


def tell_trip(error: DivergenceUnrecoverable) -> None:
    """Report the error as a severe event of the current span, and count it."""
    count("esper.guard.trips")
    with noted_on(error, "saying guard_tripped"):
        told = {"step": error.step, "what": error.what, "value": error.value, **error.measured}
        severe("guard_tripped", Severity.CRITICAL, **told)
