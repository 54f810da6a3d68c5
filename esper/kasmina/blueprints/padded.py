"""Calls a seed with the padding of its slot's output. Imports only torch, as exported networks contain it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def takes_padding(seed: nn.Module) -> bool:
    """Return whether a seed is called with the padding of its slot: it has the attribute `takes_padding`, True."""
    return hasattr(seed, "takes_padding") and bool(seed.takes_padding)


def seed_output(seed: nn.Module, h: Tensor, padding: Tensor | None) -> Any:  # Any: a wrong blueprint returns anything
    """Return the seed's output: `seed(h, padding)` if the seed `takes_padding`, else `seed(h)`.

    Args:
        h: Output of the slot, [B, ...]; for a seed that takes padding [B, T, C].
        padding: Booleans [B, T], True at padded positions. None: no position is padded. The seed then gets booleans
            that are all False, so that it computes in the same way with and without a mask.
    """
    if not takes_padding(seed):
        return seed(h)
    if padding is None:
        padding = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    return seed(h, padding)
