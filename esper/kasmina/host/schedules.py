"""Schedules of alpha over the ramp of a seed, from 0 to its target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from esper.leyline.commands import BlendSchedule, BlendSpec

STEEPNESS = 12.0
"""SIGMOID uses the logistic function on the interval from -6 to 6. This is the width of the interval."""


def sigmoid(x: float) -> float:
    """Return the logistic function of x. x may be infinite. No intermediate value overflows."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def _linear(progress: float) -> float:
    return progress


def _cosine(progress: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2


def _sigmoid(progress: float) -> float:
    """Return a logistic function, moved and stretched so that it begins at exactly 0 and ends at exactly 1."""
    least, most = sigmoid(-STEEPNESS / 2), sigmoid(STEEPNESS / 2)
    return (sigmoid(STEEPNESS * (progress - 0.5)) - least) / (most - least)


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    BlendSchedule.LINEAR: _linear,
    BlendSchedule.COSINE: _cosine,
    BlendSchedule.SIGMOID: _sigmoid,
}
"""Schedule -> function. It takes the share of the ramp that is done, from 0 to 1, and returns alpha as a share of its
target. At 0 it returns exactly 0, and at 1 it returns exactly 1."""


def alpha_at(step: int, start: int, blend: BlendSpec) -> float:
    """Return the scheduled alpha of a seed at an optimizer step, from 0 to `blend.alpha_target`.

    Step `start` is the first step of the ramp. It counts as done, so the share of the ramp at this step is
    `1 / ramp_steps`, and alpha is more than 0.

    Source: docs/growth.md.
    """
    progress = min(1.0, max(0, step - start + 1) / blend.ramp_steps)
    return blend.alpha_target * SCHEDULES[blend.schedule](progress)
