"""The formulas that blend a seed's output into the host's activation. Imports only torch.

Shapes: B is the batch, `...` the other dimensions of the slot's output. The formulas broadcast only the weight.
"""

from __future__ import annotations

from torch import Tensor


def residual(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
    """Add the seed's correction to the host: `host + weight * seed`.

    Args:
        host: Host activations, [B, ...]; any floating dtype. Gradients flow through it.
        seed: Seed output, same shape, dtype and device.
        weight: 0..1, no unit; rank 0 or broadcastable to one sample; not a parameter.

    Returns: New tensor, [B, ...], in the dtype of the host.

    Source: He et al. 2016, arXiv:1512.03385, sec. 3.1 (identity shortcut); esper added the ramp of the weight.
    """
    return host + weight * seed


def convex(host: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
    """Interpolate between the host and the seed: `(1 - weight) * host + weight * seed`. The shapes are as in
    `residual`.
    """
    return (1 - weight) * host + weight * seed


def weight_of(alpha: Tensor, channels: Tensor | None, host: Tensor) -> Tensor:
    """Return the weight of a formula: alpha, or alpha times the vector over the channels, in the host's dtype."""
    return alpha if channels is None else (alpha * channels).to(host.dtype)
