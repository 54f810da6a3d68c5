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
_Kind = tuple[torch.dtype, torch.device, str]
"""The same as objects of torch. A call is counted by them, because it takes a microsecond to make texts of them."""


class CallRecord:
    """The calls of one seed since the last `take`, by `Ran`. Recomputations in a backward pass do not count."""

    def __init__(self, dtype: torch.dtype, device: torch.device, path: str) -> None:
        """Make an empty record.

        Args:
            dtype: The usual dtype of an output. If a compiled call is of another kind, torch compiles once more.
            device: Device of the seed.
            path: The usual code path.
        """
        self._eager = Counter[_Kind]()
        self._compiled: dict[_Kind, Tensor] = {
            (dtype, device, path): torch.zeros((), dtype=torch.int64, device=device),
        }
        self._shape: torch.Size | None = None

    def add(self, module: nn.Module, output: Tensor) -> None:
        """Count a call directly after the module has returned its output, [B, ...]."""
        self._shape = output.shape[1:]
        kind = output.dtype, output.device, path_of_this_call(module)
        if not torch.compiler.is_compiling():
            self._eager[kind] += 1
            return
        if kind not in self._compiled:
            self._compiled[kind] = torch.zeros((), dtype=torch.int64, device=output.device)
        self._compiled[kind].add_(1)

    def counts(self) -> Counter[Ran]:
        """Return the number of calls of each kind."""
        compiled = {kind: int(count) for kind, count in self._compiled.items()}
        found = Counter[Ran]()
        for (dtype, device, path), count in (*self._eager.items(), *compiled.items()):
            if count:
                found[str(dtype), str(device), path] += count
        return found

    def take(self) -> tuple[Counter[Ran], tuple[int, ...] | None]:
        """Return `counts` and the shape of the last output for one sample, and begin a new record.

        The shape is None if there was no call.
        """
        found = self.counts(), None if self._shape is None else tuple(self._shape)
        self._eager, self._shape = Counter(), None
        for count in self._compiled.values():
            count.zero_()
        return found


def is_recomputing() -> bool:
    """Return whether a backward pass is running. Gradient checkpointing calls modules again in a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
