"""Records the number of calls of a seed, by dtype, device and code path.

A compiled call is not counted in Python, because torch would compile again whenever the count changes. Instead, the
compiled graph adds 1 to a tensor. So the count also shows that the compiled graph ran.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from esper.kasmina.host.code_path import path_of_this_call

Ran = tuple[str, str, str]
"""Dtype and device of a call's output, and the code path of the call."""


class CallRecord:
    """The calls of one seed since the last `take`, by `Ran`. Recomputations in a backward pass do not count."""

    def __init__(self, expected: Ran, device: torch.device) -> None:
        """Make an empty record.

        Args:
            expected: The usual kind of call. If a compiled call is of another kind, torch compiles once more.
            device: Device of the seed.
        """
        self._eager = Counter[Ran]()
        self._compiled: dict[Ran, Tensor] = {expected: torch.zeros((), dtype=torch.int64, device=device)}

    def add(self, module: nn.Module, output: Tensor) -> None:
        """Count a call directly after the module has returned its output."""
        ran = str(output.dtype), str(output.device), path_of_this_call(module)
        if not torch.compiler.is_compiling():
            self._eager[ran] += 1
            return
        if ran not in self._compiled:
            self._compiled[ran] = torch.zeros((), dtype=torch.int64, device=output.device)
        self._compiled[ran].add_(1)

    def counts(self) -> Counter[Ran]:
        """Return the number of calls of each kind."""
        return self._eager + Counter({ran: int(count) for ran, count in self._compiled.items()})

    def take(self) -> Counter[Ran]:
        """Return `counts`, and set all counts to 0."""
        found = self.counts()
        self._eager = Counter()
        for count in self._compiled.values():
            count.zero_()
        return found


def is_recomputing() -> bool:
    """Return whether a backward pass is running. Gradient checkpointing calls modules again in a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
