"""Records the calls of a seed: how many, and on which dtype, device and code path each ran.

A compiled callable must not count in Python: torch compiles it again when a number that it has read changes. So a
compiled call adds to a tensor, as a part of the compiled graph, and the number shows that this graph ran.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from esper.kasmina.host.code_path import path_of_this_call

Ran = tuple[str, str, str]
"""Dtype and device of a call's output, and its code path."""


class CallRecord:
    """The calls of one seed since the last `take`, by `Ran`. Recomputations in a backward pass do not count."""

    def __init__(self, expected: Ran, device: torch.device) -> None:
        """Make an empty record.

        Args:
            expected: The usual kind of call. A compiled call of another kind compiles its callable once more.
            device: Device of the seed.
        """
        self._eager = Counter[Ran]()
        self._compiled: dict[Ran, Tensor] = {expected: torch.zeros((), dtype=torch.int64, device=device)}

    def add(self, module: nn.Module, output: Tensor) -> None:
        """Count the call of a module that has just returned an output."""
        ran = str(output.dtype), str(output.device), path_of_this_call(module)
        if not torch.compiler.is_compiling():
            self._eager[ran] += 1
            return
        if ran not in self._compiled:
            self._compiled[ran] = torch.zeros((), dtype=torch.int64, device=output.device)
        self._compiled[ran].add_(1)

    def counts(self) -> Counter[Ran]:
        """Return the number of calls of each kind that occurred."""
        return self._eager + Counter({ran: int(count) for ran, count in self._compiled.items()})

    def take(self) -> Counter[Ran]:
        """Return `counts` and begin at 0 again."""
        found = self.counts()
        self._eager = Counter()
        for count in self._compiled.values():
            count.zero_()
        return found


def is_recomputing() -> bool:
    """Return whether a backward pass is running: gradient checkpointing calls modules again in it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
