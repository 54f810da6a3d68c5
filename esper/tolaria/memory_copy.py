"""Memory for one snapshot, allocated once: a state is copied into it at a fence, and back. It keeps no second one."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.leyline.checkpoint_record import MemoryCopy
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.trees import copy_all

_Form = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


@dataclass(frozen=True, eq=False)
class HeldSnapshot:
    """What the arena holds. The snapshot is good until the next `keep`."""

    kept: MemoryCopy
    snapshot: HostSnapshot


class Arena:
    """Holds at most one snapshot, on the devices of the host. What fits into memory that is there gets no new one."""

    def __init__(self) -> None:
        self._memory: list[tuple[_Form, Tensor]] = []
        self.held: HeldSnapshot | None = None

    def keep(self, live: HostSnapshot, generation: int) -> HeldSnapshot:
        """Copy a state in place of what was held; if that fails nothing is held.

        Args:
            live: A view of the host that shares its tensors.
        """
        start = time.monotonic()
        self.held = None
        wanted = live.all_tensors()
        self._memory = _allocated(wanted, self._memory)
        copy_all([(memory, tensor) for (_, memory), tensor in zip(self._memory, wanted, strict=True)])
        memory = iter(self._memory)
        snapshot = live.mapped(lambda _tensor: next(memory)[1])
        kept = MemoryCopy(
            fence=live.fence,
            step=live.step,
            generation=generation,
            tensor_bytes=sum(tensor.nbytes for tensor in wanted),
            seconds=time.monotonic() - start,
        )
        self.held = HeldSnapshot(kept, snapshot)
        return self.held


def _form(tensor: Tensor) -> _Form:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _allocated(wanted: list[Tensor], memory: list[tuple[_Form, Tensor]]) -> list[tuple[_Form, Tensor]]:
    """One tensor for each that is wanted, of the memory that is there before any new; what is left over is let go."""
    there: defaultdict[_Form, list[Tensor]] = defaultdict(list)
    for form, tensor in reversed(memory):  # the first is taken first: an unchanged topology finds its own again
        there[form].append(tensor)
    memory.clear()
    found = []
    for tensor in wanted:
        form = _form(tensor)
        found.append((form, there[form].pop() if there[form] else torch.empty_like(tensor).detach()))
    return found
