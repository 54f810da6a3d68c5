"""The largest gradient norm of many steps is found without the norm of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from esper.tolaria.gradient_norm import LargestNorm, global_norm

Shapes = Sequence[tuple[int, ...]]
SHAPES: Shapes = [(3, 4), (5,), (), (2, 2, 2), (97, 65)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3, 1.0])  # from equal norms to norms that differ much
@pytest.mark.parametrize("size", [1.0, 3e3])
@pytest.mark.parametrize("known", [(), SHAPES, [*SHAPES, (300, 300)]], ids=["unknown", "few", "many"])
@pytest.mark.parametrize("turned", [False, True])  # a gradient that is turned is not contiguous
def test_the_largest_norm_equals_the_largest_of_all_norms(
    dtype: torch.dtype, spread: float, size: float, known: Shapes, turned: bool
) -> None:
    draw = torch.Generator().manual_seed(1)
    norms = LargestNorm([torch.zeros(shape) for shape in known])
    start = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in SHAPES]
    exact = []
    for _ in range(60):
        step = [
            (size * (one + spread * torch.randn(one.shape, generator=draw, dtype=one.dtype))).to(dtype) for one in start
        ]
        step = [one.mT if turned and one.dim() > 1 else one for one in step]
        exact.append(global_norm(step).item())
        assert norms.see(step) == pytest.approx(exact[-1], rel=0.005)
    assert norms.largest() == max(exact)


def test_gradients_of_two_dtypes_have_the_norm_of_all_parts() -> None:
    draw = torch.Generator().manual_seed(2)
    step = [torch.randn(50, generator=draw, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    norms = LargestNorm(step)
    norms.see(step)
    assert norms.largest() == global_norm(step).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("values", [(1, math.nan), (math.inf, 1), (6e4, 6e4), (-math.inf,), (math.inf, math.nan)])
def test_a_norm_that_is_not_finite_is_seen(values: Sequence[float], few: bool, dtype: torch.dtype) -> None:
    gradients = [torch.tensor([value], dtype=dtype) for value in values]
    norms = LargestNorm([torch.zeros(1) for _ in values] if few else ())
    assert str(norms.see(gradients)) == str(global_norm(gradients).item())
