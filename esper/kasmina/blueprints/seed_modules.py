"""Modules that seeds of several kinds share.

Every built-in seed maps h to a correction s of h's shape and dtype. The blend mode RESIDUAL adds s: `h + alpha * s`.
The other modes replace a part of h by s (`esper.kasmina.host.formulas`). The last layer is `zeroed`, so in a new seed s
is exactly 0, and only the last layer has a gradient (Bachlechner et al., arXiv:2003.04887; Zhang et al., Fixup,
arXiv:1901.09321).

Suffixes: B batch, C channels, H height, W width, T time or position, N heads, K channels per head.
"""

from __future__ import annotations

from torch import Tensor, nn


def zeroed(layer: nn.Module) -> nn.Module:
    """Set every parameter of `layer` to 0, in place, and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class SquaredReLU(nn.Module):
    """relu(x)^2, elementwise. Source: So et al., Primer, arXiv:2109.08668."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


def bottleneck_width(channels: int) -> int:
    """Return a quarter of the channels, at least 1."""
    return max(1, channels // 4)
