"""The guard: what is finite passes, however large; what is not stops the step, and is told and counted once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from esper.errors import DivergenceUnrecoverable
from esper.telemetry import Telemetry
from esper.testing import telling
from esper.tolaria.guard import check_finite


@pytest.mark.parametrize(("loss", "norm"), [(0.0, 0.0), (-3.0, 1e30), (1e300, 0.5)])
def test_what_is_finite_passes_in_silence(loss: float, norm: float, told: Callable[[], list[str]]) -> None:
    check_finite(7, loss, norm)
    assert told() == []


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [
        (math.nan, 1.0, "loss"),
        (math.inf, 1.0, "loss"),
        (-math.inf, 1.0, "loss"),
        (1.0, math.nan, "gradient_norm"),
        (1.0, math.inf, "gradient_norm"),
        (math.nan, math.nan, "loss"),
    ],
)
def test_what_is_not_finite_is_told_counted_and_raised_once(
    loss: float, norm: float, what: str, telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    with pytest.raises(DivergenceUnrecoverable, check=telling("step 7", step=7, what=what)) as caught:
        check_finite(7, loss, norm)
    assert not math.isfinite(caught.value.value)
    assert told() == ["guard_tripped"]
    assert telemetry.counters.total("esper.guard.trips") == 1
