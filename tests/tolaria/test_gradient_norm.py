"""The largest gradient norm of many steps is found without the norm of each step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from esper.tolaria.gradient_norm import LargestNorm, global_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3, 1.0])  # from equal norms to norms that differ much
@pytest.mark.parametrize("size", [1.0, 3e3])
def test_the_largest_norm_equals_the_largest_of_all_norms(dtype: torch.dtype, spread: float, size: float) -> None:
    draw = torch.Generator().manual_seed(1)
    norms = LargestNorm()
    shapes = [(3, 4), (5,), (), (2, 2, 2)]
    start = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    exact = []
    for _ in range(60):
        step = [
            (size * (one + spread * torch.randn(one.shape, generator=draw, dtype=one.dtype))).to(dtype) for one in start
        ]
        exact.append(global_norm(step).item())
        assert norms.see(step) == pytest.approx(exact[-1], rel=0.005)
    assert norms.largest() == max(exact)


def values(*found: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float16) for value in found]


@pytest.mark.parametrize("gradients", [values(1, math.nan), values(math.inf, 1), values(6e4, 6e4), values(-math.inf)])
def test_a_norm_that_is_not_finite_is_seen(gradients: list[Tensor]) -> None:
    assert not math.isfinite(global_norm(gradients).item())
    assert str(LargestNorm().see(gradients)) == str(global_norm(gradients).item())
