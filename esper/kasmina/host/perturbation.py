"""Changes an input at one position, and compares outputs before and after the change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]

_NOISE_KEY = 0x5EED_0B5E_55ED_CA5E
"""Seed of the noise. It is not a common number such as 0 or 42, because the user's data may be drawn with a common
seed. In this case the noise equals the data x, and x + x equals x after a normalization."""


def unchanged(x: Tensor) -> Tensor:
    """Return x."""
    return x


def other_content(x: Tensor) -> Tensor:
    """Return other content for a batch x. The values stay within the range of x, so that the model can process them.

    An integer becomes the next larger integer that occurs in x. The largest integer becomes the smallest. A floating
    number moves towards the same entry of another sample, by a random part of the distance.
    """
    if not x.is_floating_point():
        occurring, index = torch.unique(x, return_inverse=True)
        return torch.take(occurring, (index + 1) % len(occurring))
    share = torch.rand(x.shape, generator=torch.Generator().manual_seed(_NOISE_KEY)).to(x)
    target = x.roll(1, dims=0)
    between = x + share * (target - x)
    return torch.where(between.isnan(), target, between)  # nan: -inf + inf, in an additive mask


def with_noise(x: Tensor) -> Tensor:
    """Return x plus normal noise of the standard deviation of x (1 if x is constant), so that every entry changes."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(_NOISE_KEY)).to(x)
    spread = x.std(correction=0)
    return x + noise * torch.where(spread > 0, spread, torch.ones_like(spread))


def perturbing(where: tuple[slice | Tensor, ...], leading: tuple[int, ...]) -> Change:
    """Return a function that changes a tensor in place, at the positions `where`, and returns it.

    The function changes only tensors of numbers whose first dimensions are `leading`.

    Args:
        where: One index for each dimension in `leading`: a slice or a boolean tensor.
    """

    def change(x: Tensor) -> Tensor:
        if is_content(x, leading):
            x[where] = other_content(x)[where]
        return x

    return change


def is_content(x: Tensor, leading: tuple[int, ...]) -> bool:
    """Return whether x has the first dimensions `leading` and is not boolean. A boolean tensor is a mask."""
    return x.dtype != torch.bool and tuple(x.shape[: len(leading)]) == leading


def moved(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Return booleans: True for an entry that changed by more than `tolerance` times the largest entry.

    Outputs are finite.
    """
    return (after - before).abs() > tolerance * before.abs().max()
