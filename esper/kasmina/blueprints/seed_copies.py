"""A seed of several modules of one blueprint. Imports only torch and `padded`, as exported networks contain it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from esper.kasmina.blueprints.padded import seed_output, takes_padding


class SeedCopies(nn.Module):
    """Modules of one blueprint, each with weights of its own, as one seed.

    Each module acts on the slot's output plus the sum of the outputs of the modules before it: s = s1 + s2 + ..., with
    s1 = c1(h) and s2 = c2(h + s1). With the blend RESIDUAL and alpha 1, this equals a stack of seeds. The output is 0
    if the output of each module is 0.
    """

    def __init__(self, copies: Iterable[nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.takes_padding = any(map(takes_padding, self.copies))

    def forward(self, h: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the sum of the outputs of all modules, in the shape of `h`. `padding`: see `seed_output`."""
        first, *others = self.copies
        total: Tensor = seed_output(first, h, padding)
        for copy in others:
            total = total + seed_output(copy, h + total, padding)
        return total
