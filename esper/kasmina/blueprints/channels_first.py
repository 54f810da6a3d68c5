"""Seeds for [B, C, T], made of seeds for [B, T, C]. Imports only torch, as exported networks contain it."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelsFirst(nn.Module):
    """The function of a seed for [B, T, C], on the transposed activation.

    The inner seed gets a contiguous input, as it does in most slots [B, T, C]. The output is contiguous, because the
    host may call `view` on the blended output of the slot.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Return the correction [B, C, T]."""
        s_BTC: Tensor = self.inner(x_BCT.transpose(1, 2).contiguous())
        return s_BTC.transpose(1, 2).contiguous()
