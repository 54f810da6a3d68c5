"""Measures whether the loss of a sample depends on the other samples of its batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from esper.errors import in_a_line
from esper.ground.nested import mapped, tensors
from esper.ground.random_streams import restore_streams, streams
from esper.task import Loss
from esper.tolaria.loss import sample_losses
from esper.tolaria.task_metrics import Seen

ROUNDING = 1e-3
"""A relative tolerance. Losses count as equal if they differ by less than this share of their value or of the mean
absolute loss. A loss that does not depend on the batch may still differ by rounding, because half a batch sums fewer
rows. A contrastive loss changes by much more in half of the batch."""


class Dependence(NamedTuple):
    """Whether the loss of a sample depends on the other samples of its batch."""

    depends: bool | None
    """None: it could not be determined."""
    why: str | None = None
    """The reason why it could not be determined."""


def depends_on_batch(measure: Loss, seen: Seen) -> Dependence:
    """Compare the losses of a batch's samples with their losses in the two halves of the batch.

    A contrastive loss compares each sample with the other samples of its batch, so the loss of a sample is different in
    half of the batch. Every call of `measure` gets copies, and the random streams are restored afterwards. A tensor of
    one element, such as a temperature, belongs to no sample and is given whole with each half.

    Returns:
        True if the losses differ. None if the comparison is impossible or proves nothing: the batch has only one
        sample, no output and no target has a row per sample, another tensor has rows that are not samples, or `measure`
        draws random numbers or fails on half of the batch.
    """
    values = [one for one in (*tensors(seen.output), *tensors(seen.target)) if one.numel() != 1]
    strange = [one for one in values if len(one) != seen.samples]
    if seen.samples < 2:
        return Dependence(None, "the batch has only one sample")
    if len(strange) == len(values):
        return Dependence(None, f"no output and no target has a row for each of {seen.samples} samples")
    before, middle = streams(), seen.samples // 2

    def losses(first: int, last: int) -> Tensor:
        def part(one: Tensor) -> Tensor:
            return (one[first:last] if one.dim() and len(one) == seen.samples else one).clone()

        output, target = mapped(part, seen.output), mapped(part, seen.target)
        return sample_losses(measure, output, target, last - first).losses.detach().double()

    try:
        whole = losses(0, seen.samples)
        if not torch.allclose(whole, losses(0, seen.samples), equal_nan=True):
            return Dependence(None, "the loss draws random numbers")
        halves = torch.cat([losses(0, middle), losses(middle, seen.samples)])
    except Exception as error:
        return Dependence(None, f"the loss cannot be computed for half of a batch: {in_a_line(error)}")
    finally:
        restore_streams(before)
    rounding = ROUNDING * float(whole.abs().mean())
    if not torch.allclose(whole, halves, rtol=ROUNDING, atol=rounding, equal_nan=True):
        return Dependence(True)
    if strange:  # it was the same in both calls, so it may hide that the loss depends on other samples
        shape = tuple(strange[0].shape)
        return Dependence(None, f"an output or target of shape {shape} has no row for each of {seen.samples} samples")
    return Dependence(False)
