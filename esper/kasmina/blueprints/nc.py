"""Seeds for [B, C] and [B, T, C] that act on the last axis only, so samples and positions stay separate."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from esper.kasmina.blueprints.seed_modules import SquaredReLU, bottleneck_width, zeroed


def scaled_layer_norm(channels: int) -> nn.Module:
    """s = scale * LN(x) + shift; scale and shift start at 0. Source: Ba et al., arXiv:1607.06450."""
    return zeroed(nn.LayerNorm(channels))


def low_rank(channels: int) -> nn.Module:
    """s = U V LN(x) of rank C/4. Source: Hu et al., LoRA, arXiv:2106.09685; esper added the norm before it."""
    rank = bottleneck_width(channels)
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, rank, bias=False), zeroed(nn.Linear(rank, channels))
    )


def mlp(channels: int, ratio: int = 4, *mix: nn.Module) -> nn.Module:
    """s = W2 relu(W1 mix(LN(x)))^2, with `ratio * channels` hidden channels. `mix` may act along other axes, too.

    Source: pre-norm, Xiong et al., arXiv:2002.04745; the activation is `SquaredReLU`.
    """
    width = ratio * channels
    return nn.Sequential(
        nn.LayerNorm(channels),
        *mix,
        nn.Linear(channels, width),
        SquaredReLU(),
        zeroed(nn.Linear(width, channels)),
    )


class GatedMLP(nn.Module):
    """s = W_out (silu(a) * b) with [a, b] = W_in LN(x), each of 2C channels.

    Source: Shazeer, SwiGLU, arXiv:2002.05202.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inward = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 4 * channels))
        self.outward = zeroed(nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a correction of the shape of `x`, [B, ..., C]."""
        a, b = self.inward(x).chunk(2, dim=-1)
        s: Tensor = self.outward(silu(a) * b)
        return s
