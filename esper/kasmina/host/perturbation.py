"""Changes an input at one place, so that one can look at what moves. It runs no module and judges nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]

_NOISE_KEY = 0x5EED_0B5E_55ED_CA5E
"""Not 0 or 42: data drawn under the same key would be the noise itself, and x + x is no change behind a norm."""


def unchanged(x: Tensor) -> Tensor:
    """The change that is none."""
    return x


def other_content(x: Tensor) -> Tensor:
    """Other content for a batch x, of the kind that the model knows: nothing outside the range of x is made up.

    Integers become the next larger one that occurs in x; floating numbers move a random part of the way to the next
    sample's.
    """
    if not x.is_floating_point():
        occurring, index = torch.unique(x, return_inverse=True)
        return torch.take(occurring, (index + 1) % len(occurring))
    share = torch.rand(x.shape, generator=torch.Generator().manual_seed(_NOISE_KEY)).to(x)
    target = x.roll(1, dims=0)
    between = x + share * (target - x)
    return torch.where(between.isnan(), target, between)  # an additive mask: -inf + inf


def with_noise(x: Tensor) -> Tensor:
    """x plus normal noise of its own scale (of scale 1 where x is constant), so that every entry moves."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(_NOISE_KEY)).to(x)
    spread = x.std(correction=0)
    return x + noise * torch.where(spread > 0, spread, torch.ones_like(spread))


def perturbing(where: tuple[slice | Tensor, ...], leading: tuple[int, ...]) -> Change:
    """A change, in place and at `where`, of tensors that begin with the dimensions `leading`; no other is touched.

    Args:
        where: One index for each of the first dimensions: a slice, or booleans.
    """

    def change(x: Tensor) -> Tensor:
        if is_content(x, leading):
            x[where] = other_content(x)[where]
        return x

    return change


def is_content(x: Tensor, leading: tuple[int, ...]) -> bool:
    """Does x hold numbers (a boolean is a mask) and begin with the dimensions `leading`?"""
    return x.dtype != torch.bool and tuple(x.shape[: len(leading)]) == leading


def moved(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Which entries of finite outputs moved by more than `tolerance` times the largest one; booleans."""
    return (after - before).abs() > tolerance * before.abs().max()
