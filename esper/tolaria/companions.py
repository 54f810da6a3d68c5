"""Finds out whether the loss of a sample depends on the other samples of its batch. It refuses nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.ground.nested import mapped, tensors
from esper.ground.random_streams import restore_streams, streams
from esper.task import Loss
from esper.tolaria.loss import sample_losses
from esper.tolaria.task_metrics import Seen

ROUNDING = 1e-3
"""Losses that differ by less, as a share of them or of their mean size, count as equal: sums over rows of another
number are rounded otherwise. In a contrastive loss half of the batch changes each loss by far more."""


def depends_on_batch(measure: Loss, seen: Seen) -> bool | None:
    """Compare the losses of a batch's samples with those that they have in the two halves of the batch.

    Contrastive losses differ there: each sample is compared with the others of its batch. Every call gets copies, and
    the random streams go on as if none had been made.

    Returns:
        None where this cannot be found out: an output or target has no row per sample, `measure` draws random numbers,
        or it takes no smaller batch.
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
        if not torch.allclose(whole, losses(0, seen.samples), equal_nan=True):  # it draws random numbers
            return None
        halves = torch.cat([losses(0, middle), losses(middle, seen.samples)])
    except Exception:
        return None
    finally:
        restore_streams(before)
    rounding = ROUNDING * float(whole.abs().mean())
    return not torch.allclose(whole, halves, rtol=ROUNDING, atol=rounding, equal_nan=True)
