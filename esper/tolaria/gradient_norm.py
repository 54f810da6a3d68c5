"""The norm of all gradients of a step, and the largest norm of many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

_device_of = attrgetter("device")

MARGIN = 0.01
"""Largest relative error of an estimate. It is larger than the rounding of a norm in bfloat16."""
ESTIMATED_BELOW = 1e4
"""Norms from this value on are not estimated, because the norm of gradients in float16 may overflow there."""
FEW_ELEMENTS = 2**16
"""Largest number of elements of all gradients that are copied into one tensor. For more elements, the copy takes longer
than the calls that it saves."""
PRECISE = (torch.float32, torch.float64)
"""Dtypes in which the sum of squares has a relative error far below `MARGIN`."""


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together, a scalar on the device of the first gradient.

    For gradients of one dtype the result equals `torch.nn.utils.get_total_norm` bit for bit. That function groups
    gradients by device and dtype. The grouping takes 2 % of the step of a small host.
    """
    return _joined(torch._foreach_norm(gradients))


def _joined(norms: Sequence[Tensor]) -> Tensor:
    """Return the norm of the norms of all gradients."""
    if len(set(map(_device_of, norms))) > 1:
        norms = tuple(norm.to(norms[0].device) for norm in norms)
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return total


def _of_one_copy(gradients: list[Tensor]) -> float:
    """Return the global norm of a few small gradients, with the rounding errors of one sum of squares.

    Two calls of torch are enough for all gradients. The norm of each gradient would take a call for each.
    """
    copied: Tensor = torch._C._nn.flatten_dense_tensors(gradients)
    return math.sqrt(torch.dot(copied, copied).item()) if copied.dtype in PRECISE else math.nan


class LargestNorm:
    """Finds the largest global norm of the gradients of many steps, as `global_norm` computes it.

    In most steps, the norm is only estimated, because `global_norm` takes longer. The estimate is made of every
    element, so it is infinite or NaN if an element is. If a step may have the largest norm, its norm is computed.
    """

    def __init__(self, parameters: Sequence[Tensor] = ()) -> None:
        """Begin without a step.

        Args:
            parameters: All tensors that may have a gradient. If they have few elements, an estimate takes less time. No
                tensor: they are not known.
        """
        elements = sum(map(Tensor.numel, parameters))
        self._few = 0 < elements <= FEW_ELEMENTS and all(one.is_cpu and one.dtype in PRECISE for one in parameters)
        """Whether the gradients are copied into one tensor for an estimate."""
        self._estimate = -1.0
        """Estimate of the largest norm. -1: no step was seen."""
        self._norms: Sequence[Tensor] = ()
        """The norm of each gradient in the step with the largest norm."""

    def see(self, gradients: list[Tensor]) -> float:
        """Return an estimate of the global norm of a step's gradients.

        Values from `ESTIMATED_BELOW` on, infinite values and NaN are the norm itself. On an accelerator, every value is
        the norm itself, because it waits for the accelerator once, and an estimate once for each gradient.
        """
        estimate = _of_one_copy(gradients) if self._few else math.nan
        norms = () if estimate < ESTIMATED_BELOW else torch._foreach_norm(gradients)
        if norms:
            estimate = math.hypot(*map(Tensor.item, norms)) if norms[0].is_cpu else math.inf
            if not estimate < ESTIMATED_BELOW:
                estimate = _joined(norms).item()
        if estimate >= self._estimate * (1 - MARGIN):
            self._compare(estimate, norms or torch._foreach_norm(gradients))
        return estimate

    def _compare(self, estimate: float, norms: Sequence[Tensor]) -> None:
        """Keep the larger of two steps. If the estimates do not show which is larger, compute both norms."""
        near = estimate <= self._estimate * (1 + MARGIN)
        if not near or _joined(norms).item() > self.largest():
            self._estimate, self._norms = estimate, norms

    def see_exactly(self, gradients: list[Tensor]) -> Tensor:
        """Return the global norm of a step's gradients, a scalar."""
        norms = torch._foreach_norm(gradients)
        total = _joined(norms)
        if (value := total.item()) > self._estimate:
            self._estimate, self._norms = value, norms
        return total

    def largest(self) -> float:
        """Return the largest global norm of all steps that were seen, without an estimate."""
        return _joined(self._norms).item()
