"""Blends a seed's output into the host's activation. Pure functions, without broadcasting, moves or casts.

Shapes: B is the batch, `...` the other dimensions of the slot's output.
"""

from __future__ import annotations

from torch import Tensor

from esper.errors import DependencyViolationError


def blend_residual(host: Tensor, seed: Tensor, alpha: Tensor) -> Tensor:
    """Add the seed's correction to the host: `host + alpha * seed`.

    Args:
        host: Host activations, [B, ...]; any floating dtype. Gradients flow through it.
        seed: Seed output, same shape, dtype and device.
        alpha: Rank-0 buffer, 0..1, no unit; not a parameter.

    Returns:
        New tensor, [B, ...], host dtype.

    Raises:
        DependencyViolationError: shapes, dtypes or devices differ.

    Source: He et al. 2016, arXiv:1512.03385, sec. 3.1 (identity shortcut); the ramp of alpha is esper's.
    """
    if host.shape != seed.shape or host.dtype != seed.dtype or host.device != seed.device:
        raise DependencyViolationError(
            "blend",
            "the seed's output does not fit the host's",
            f"{tuple(seed.shape)} {seed.dtype} {seed.device} on {tuple(host.shape)} {host.dtype} {host.device}",
        )
    return host + alpha * seed


def alpha_at(step: int, start: int, ramp_steps: int, target: float) -> float:
    """Return alpha of a seed at an optimizer step: `target * (step - start + 1) / ramp_steps`, from 0 to `target`.

    Source: docs/growth.md (linear ramp).
    """
    return target * min(1.0, max(0, step - start + 1) / ramp_steps)
