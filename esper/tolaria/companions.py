"""Measures whether the loss of a sample depends on the other samples of its batch."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.ground.nested import mapped, tensors
from esper.ground.random_streams import restore_streams, streams
from esper.task import Loss
from esper.tolaria.loss import sample_losses
from esper.tolaria.task_metrics import Seen

ROUNDING = 1e-3
"""A relative tolerance. Losses count as equal if they differ by less than this share of their value or of the mean
absolute loss. A loss that does not depend on the batch may still differ by rounding, because half a batch sums fewer
rows. A contrastive loss changes by much more in half of the batch."""


def depends_on_batch(measure: Loss, seen: Seen) -> bool | None:
    """Compare the losses of a batch's samples with their losses in the two halves of the batch.

    A contrastive loss compares each sample with the other samples of its batch, so the loss of a sample is different in
    half of the batch. Every call of `measure` gets copies, and the random streams are restored afterwards.

    Returns:
        True if the losses differ. None if the comparison is impossible, because the batch has only one sample, an
        output or target does not have one row per sample, or `measure` draws random numbers or fails on half of the
        batch.
    """
    values = [*tensors(seen.output), *tensors(seen.target)]
    if seen.samples < 2 or any(one.dim() == 0 or len(one) != seen.samples for one in values):
        return None
    before, middle = streams(), seen.samples // 2

    def losses(first: int, last: int) -> Tensor:
        output, target = (mapped(lambda one: one[first:last].clone(), part) for part in (seen.output, seen.target))
        return sample_losses(measure, output, target, last - first).losses.detach().double()

    try:
        whole = losses(0, seen.samples)
        if not torch.allclose(whole, losses(0, seen.samples), equal_nan=True):  # `measure` draws random numbers
            return None
        halves = torch.cat([losses(0, middle), losses(middle, seen.samples)])
    except Exception:
        return None
    finally:
        restore_streams(before)
    rounding = ROUNDING * float(whole.abs().mean())
    return not torch.allclose(whole, halves, rtol=ROUNDING, atol=rounding, equal_nan=True)
