"""Memory for one snapshot. A snapshot is copied into it at each fence. A rollback loads the snapshot."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.leyline.checkpoint_record import StateCopied
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.trees import copy_all

_Form = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


@dataclass(frozen=True, eq=False)
class HeldSnapshot:
    """A snapshot in a `MemoryCopy`. The next `copy_state` overwrites the tensors and makes it invalid."""

    record: StateCopied
    snapshot: HostSnapshot


class MemoryCopy:
    """Memory for one snapshot, on the devices of the host.

    A tensor of the previous snapshot is reused if a new tensor has the same form.
    """

    def __init__(self) -> None:
        self._memory: list[tuple[_Form, Tensor]] = []
        self.held: HeldSnapshot | None = None

    def copy_state(self, live: HostSnapshot, generation: int) -> HeldSnapshot:
        """Copy a state over the previous snapshot. If the copy fails, `held` is None.

        Args:
            live: A view that shares the tensors of the host.
            generation: Generation of the host, for the record.
        """
        start = time.monotonic()
        self.held = None
        wanted = live.all_tensors()
        self._memory = _allocated(wanted, self._memory)
        copy_all([(memory, tensor) for (_, memory), tensor in zip(self._memory, wanted, strict=True)])
        memory = iter(self._memory)
        snapshot = live.mapped(lambda _tensor: next(memory)[1])
        record = StateCopied(
            fence=live.fence,
            step=live.step,
            generation=generation,
            tensor_bytes=sum(tensor.nbytes for tensor in wanted),
            seconds=time.monotonic() - start,
        )
        self.held = HeldSnapshot(record, snapshot)
        return self.held


def _form(tensor: Tensor) -> _Form:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _allocated(wanted: list[Tensor], memory: list[tuple[_Form, Tensor]]) -> list[tuple[_Form, Tensor]]:
    """Return memory for each wanted tensor. Memory with an equal `_Form` is taken from `memory`.

    The rest of `memory` is released.
    """
    there: defaultdict[_Form, list[Tensor]] = defaultdict(list)
    for form, tensor in reversed(memory):  # reversed, because `pop` removes the last item
        there[form].append(tensor)
    memory.clear()
    found = []
    for tensor in wanted:
        form = _form(tensor)
        found.append((form, there[form].pop() if there[form] else torch.empty_like(tensor).detach()))
    return found
