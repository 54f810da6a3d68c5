"""A seed of several modules of one blueprint. Imports only torch, so that an exported network can contain it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class SeedCopies(nn.Module):
    """Modules of one blueprint, each with weights of its own, as one seed.

    Each module acts on the slot's output plus the sum of the outputs of the modules before it: s = s1 + s2 + ..., with
    s1 = c1(h) and s2 = c2(h + s1). With the blend RESIDUAL and alpha 1, this equals a stack of seeds. The output is 0
    if the output of each module is 0.
    """

    def __init__(self, copies: Iterable[nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)

    def forward(self, h: Tensor) -> Tensor:
        """Return the sum of the outputs of all modules, in the shape of `h`."""
        first, *others = self.copies
        total: Tensor = first(h)
        for copy in others:
            total = total + copy(h + total)
        return total
