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
    """Return other content for a batch x, batch first. Each entry stays within the values of the same entry of other
    samples, so that the model can process it: columns of categories may have embeddings of different sizes.

    An integer becomes the next larger integer of the same entry in another sample. The largest integer becomes the
    smallest. An entry that is equal in all samples becomes smaller by 1 if it is positive, because an embedding that
    takes an integer takes the smaller ones, too. If it is not positive, it becomes larger by 1, but not larger than the
    largest integer in x. A floating or complex number moves towards the same entry of another sample, by a random part
    of the distance.
    """
    if not (x.is_floating_point() or x.is_complex()):
        return _other_integers(x.to(torch.int64)).to(x.dtype)
    share = torch.rand(x.shape, generator=torch.Generator().manual_seed(_NOISE_KEY)).to(x)
    target = x.roll(1, dims=0)
    between = x + share * (target - x)
    return torch.where(between.isnan(), target, between)  # nan: -inf + inf, in an additive mask


def _other_integers(x: Tensor) -> Tensor:
    if not x.numel():
        return x
    x_PB = x.flatten(1).T if x.dim() > 1 else x[None]
    ordered_PB = x_PB.sort(dim=1).values.contiguous()
    place_PB = torch.searchsorted(ordered_PB, x_PB.contiguous(), right=True) % x_PB.shape[1]
    beside_PB = torch.where(x_PB > 0, x_PB - 1, (x_PB + 1).clamp(max=int(x.max())))
    equal_P1 = ordered_PB[:, :1] == ordered_PB[:, -1:]
    other_PB = torch.where(equal_P1, beside_PB, ordered_PB.gather(1, place_PB))
    return other_PB.T.reshape(x.shape)


def with_noise(x: Tensor) -> Tensor:
    """Return x plus normal noise of the standard deviation of x (1 if x is constant), so that every entry changes."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(_NOISE_KEY)).to(x)
    spread = x.std(correction=0)
    return x + noise * torch.where(spread > 0, spread, torch.ones_like(spread))


def perturbing(where: tuple[slice | Tensor, ...], leading: tuple[int, ...], *, booleans: bool = False) -> Change:
    """Return a function that changes a tensor in place, at the positions `where`, and returns it.

    The function changes only content whose first dimensions are `leading`; see `is_content`.

    Args:
        where: One index for each dimension in `leading`: a slice or a boolean tensor.
    """

    def change(x: Tensor) -> Tensor:
        if is_content(x, leading, booleans=booleans):
            x[where] = other_content(x)[where]
        return x

    return change


def is_content(x: Tensor, leading: tuple[int, ...], *, booleans: bool = False) -> bool:
    """Return whether x has the first dimensions `leading` and is content. A boolean tensor is a mask.

    Args:
        booleans: True: boolean tensors are content, too.
    """
    return (booleans or x.dtype != torch.bool) and tuple(x.shape[: len(leading)]) == leading


def moved(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Return booleans: True for an entry that changed by more than `tolerance` times the largest entry.

    Outputs are finite.
    """
    return (after - before).abs() > tolerance * before.abs().max()
