"""The norm of all gradients of a step, and the largest norm of many steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
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


def _norm_of_parts(copied: Tensor, sizes: list[int]) -> Tensor:
    """Return the `global_norm` of contiguous gradients from a copy of their elements."""
    return global_norm(list(torch.split(copied, sizes)))


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
        alike = len({one.dtype for one in parameters}) == 1  # a copy has one dtype
        precise = all(one.is_cpu and one.dtype in PRECISE for one in parameters)
        self._few = 0 < elements <= FEW_ELEMENTS and alike and precise
        """Whether the gradients are copied into one tensor for an estimate."""
        self._estimate = -1.0
        """Estimate of the largest norm. -1: no step was seen."""
        self._largest: Callable[[], Tensor] = partial(_joined, ())
        """Computes the norm of the step with the largest norm."""

    def see(self, gradients: list[Tensor]) -> float:
        """Return an estimate of the global norm of a step's gradients.

        Values from `ESTIMATED_BELOW` on, infinite values and NaN are the norm itself. On an accelerator, every value is
        the norm itself, because it waits for the accelerator once, and an estimate once for each gradient.
        """
        if self._few and (estimate := self._see_copy(gradients)) < ESTIMATED_BELOW:
            return estimate
        norms = torch._foreach_norm(gradients)
        estimate = math.hypot(*map(Tensor.item, norms)) if norms[0].is_cpu else math.inf
        if not estimate < ESTIMATED_BELOW:
            estimate = _joined(norms).item()
        if estimate >= self._estimate * (1 - MARGIN):
            self._compare(estimate, partial(_joined, norms))
        return estimate

    def _see_copy(self, gradients: list[Tensor]) -> float:
        """Estimate the norm from a copy of all gradients, by two calls of torch instead of one for each gradient.

        Return NaN or a value from `ESTIMATED_BELOW` on if the copy does not show the norm. Then nothing was compared.
        """
        copied: Tensor = torch._C._nn.flatten_dense_tensors(gradients)
        estimate = math.sqrt(torch.dot(copied, copied).item()) if copied.dtype in PRECISE else math.nan
        if self._estimate * (1 - MARGIN) <= estimate < ESTIMATED_BELOW:
            if all(map(Tensor.is_contiguous, gradients)):
                self._compare(estimate, partial(_norm_of_parts, copied, [*map(Tensor.numel, gradients)]))
            else:  # the norm of the copy would be summed in another order
                self._compare(estimate, partial(_joined, torch._foreach_norm(gradients)))
        return estimate

    def _compare(self, estimate: float, norm: Callable[[], Tensor]) -> None:
        """Keep the larger of two steps. If the estimates do not show which is larger, compute both norms."""
        near = estimate <= self._estimate * (1 + MARGIN)
        if not near or norm().item() > self.largest():
            self._estimate, self._largest = estimate, norm

    def see_exactly(self, gradients: list[Tensor]) -> Tensor:
        """Return the global norm of a step's gradients, a scalar."""
        norms = torch._foreach_norm(gradients)
        total = _joined(norms)
        if (value := total.item()) > self._estimate:
            self._estimate, self._largest = value, partial(_joined, norms)
        return total

    def largest(self) -> float:
        """Return the largest global norm of all steps that were seen, without an estimate."""
        return self._largest().item()
