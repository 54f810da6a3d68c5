"""Seeds for sequences, [B, T, C], that mix along time. In a causal slot, s[t] depends only on x[:t+1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from esper.kasmina.blueprints.nc import mlp
from esper.kasmina.blueprints.seed_modules import zeroed


class TimeConv(nn.Module):
    """Depthwise convolution over time. The output has the length T of the input.

    If `causal`, the input is padded on the left only. Else it is padded on both sides, and `kernel` must be odd.
    Source: causal padding, van den Oord et al., WaveNet, arXiv:1609.03499.
    """

    def __init__(self, channels: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.padding = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.conv = nn.Conv1d(channels, channels, kernel, groups=channels)

    def forward(self, x_BTC: Tensor) -> Tensor:
        y_BCT: Tensor = self.conv(pad(x_BTC.transpose(1, 2), self.padding))
        return y_BCT.transpose(1, 2)


class ResidualTimeConv(TimeConv):
    """x + conv(x) along time."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        return x_BTC + super().forward(x_BTC)


def conv_mlp(channels: int, kernel: int, causal: bool) -> nn.Module:
    """s = W2 relu(W1 (y + conv_k(y)))^2 with y = LN(x).

    Source: designed for esper, after the depthwise convolutions of So et al., Primer, arXiv:2109.08668, sec. 3.
    """
    return mlp(channels, 4, ResidualTimeConv(channels, kernel, causal))


class GatedConv(nn.Module):
    """s = W_out (conv_7(a) * sigmoid(b)) with [a, b] = W_in LN(x).

    Source: gated linear units, Dauphin et al., arXiv:1612.08083; esper uses a depthwise convolution, to save
        parameters.
    """

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.inward = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2 * channels))
        self.conv = TimeConv(channels, 7, causal)
        self.outward = zeroed(nn.Linear(channels, channels))

    def forward(self, x_BTC: Tensor) -> Tensor:
        a_BTC, b_BTC = self.inward(x_BTC).chunk(2, dim=-1)
        s_BTC: Tensor = self.outward(self.conv(a_BTC) * b_BTC.sigmoid())
        return s_BTC


class TokenShift(nn.Module):
    """x[t] + mix * (x[t-1] - x[t]) with a learned `mix` per channel, initially spread over 0..1. x[-1] is 0.

    Source: Peng et al., RWKV, arXiv:2305.13048, sec. 3.1. It is causal in every slot.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Parameter((torch.arange(channels) + 0.5) / channels)

    def forward(self, x_BTC: Tensor) -> Tensor:
        before_BTC = pad(x_BTC, (0, 0, 1, 0))[:, :-1]
        return x_BTC.lerp(before_BTC, self.mix)


def token_shift(channels: int) -> nn.Module:
    """s = W2 relu(W1 shift(LN(x)))^2: the channel mixing of RWKV without its receptance gate."""
    return mlp(channels, 4, TokenShift(channels))


class Attention(nn.Module):
    """Multi-head self-attention on LN(x), with 4, 2 or 1 heads, masked where `causal`.

    It does not encode positions, because the host does. Source: Vaswani et al., arXiv:1706.03762.
    """

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = math.gcd(channels, 4), causal
        self.inward = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 3 * channels))
        self.outward = zeroed(nn.Linear(channels, channels))

    def forward(self, x_BTC: Tensor, may_read: Tensor | None = None) -> Tensor:
        """Return the correction [B, T, C].

        Args:
            may_read: Booleans that broadcast to [B, N, T, T], True where a query (third index) may read a key. Not
                together with `causal`. None: each query reads every key, or the earlier keys if `causal`.
        """
        qkv: Tensor = self.inward(x_BTC)
        batch, time, channels = x_BTC.shape
        by_head = qkv.view(batch, time, 3, self.heads, channels // self.heads)
        q_BNTK, k_BNTK, v_BNTK = by_head.permute(2, 0, 3, 1, 4).unbind()
        y_BNTK = scaled_dot_product_attention(q_BNTK, k_BNTK, v_BNTK, may_read, is_causal=self.causal)
        s_BTC: Tensor = self.outward(y_BNTK.transpose(1, 2).flatten(2))
        return s_BTC


class MaskedAttention(nn.Module):
    """`Attention` in which no real position reads a padded one. The output is 0 at padded positions.

    Each position may read itself, also a padded one. So no row of the scores is empty, and a sample without a real
    position gives no nan. Source: Vaswani et al., arXiv:1706.03762, sec. 3.2.3 (illegal connections are masked).
    """

    takes_padding = True

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.causal, self.attention = causal, Attention(channels, causal=False)

    def forward(self, x_BTC: Tensor, padding_BT: Tensor) -> Tensor:
        """Return the correction [B, T, C]. `padding_BT` is True at padded positions; their values are not used, also
        if they are not finite.
        """
        padded_BT1, time = padding_BT[:, :, None], x_BTC.shape[1]
        itself_TT = torch.eye(time, dtype=torch.bool, device=x_BTC.device)
        reach_TT = torch.ones_like(itself_TT).tril() if self.causal else torch.ones_like(itself_TT)
        may_read_B1TT = (~padding_BT[:, None, None, :] & reach_TT) | itself_TT
        s_BTC: Tensor = self.attention(x_BTC.masked_fill(padded_BT1, 0), may_read_B1TT)
        return s_BTC.masked_fill(padded_BT1, 0)


class Block(nn.Module):
    """s = a + mlp(x + a) with a = attention(x): a whole pre-norm transformer block as a correction.

    Both branches end in a zeroed layer, so s is 0 initially. Both have a gradient. Source: Vaswani et al.,
    arXiv:1706.03762; pre-norm, Xiong et al., arXiv:2002.04745.
    """

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.attention = Attention(channels, causal)
        self.mlp = mlp(channels)

    def forward(self, x_BTC: Tensor) -> Tensor:
        a_BTC: Tensor = self.attention(x_BTC)
        s_BTC: Tensor = a_BTC + self.mlp(x_BTC + a_BTC)
        return s_BTC
