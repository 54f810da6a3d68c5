"""A host with a state of a given size, and other ways to copy memory for comparison with esper's copies."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esper.leyline.checkpoint_record import StateCopied
from esper.setup.survey import survey_of
from esper.testing import tiny_config, tiny_task
from esper.tolaria.trainer import Trainer, never

MEBIBYTE = 2**20
_BYTES_PER_PARAMETER = 12
"""Bytes of a float32 parameter and its two moments in Adam."""


class Stack(nn.Module):
    """[B, 8] -> [B, 4] with about `parameters` parameters in square layers of at most 1024 features.

    Its slot is "body".
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        width = min(1024, int((parameters / 4) ** 0.5))
        self.body = nn.Linear(8, 8)
        self.wide = nn.Linear(8, width)
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(round(parameters / width**2))))
        self.head = nn.Linear(width, 4)

    def forward(self, x_BC: Tensor) -> Tensor:
        """Return class scores, [B, 4]."""
        scores: Tensor = self.head(self.layers(self.wide(self.body(x_BC))))
        return scores


def trained(state_bytes: int) -> Trainer:
    """Return a trainer with about `state_bytes` of weights and moments, after two steps."""
    parameters = state_bytes // _BYTES_PER_PARAMETER
    optimizer = {"optimizer": lambda chosen: torch.optim.Adam(chosen, lr=1e-5)}
    task = tiny_task(model=lambda: Stack(parameters), batch_size=8, **optimizer)
    trainer = survey_of(task, tiny_config(growth__enabled=False)).trainer("benchmark", 1, "tolaria", never)
    trainer.train_to(2)
    return trainer


def seconds(work: Callable[[], object]) -> float:
    """Return how many seconds of wall time one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(works: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each piece of work in each turn. The order of the pieces rotates from turn to turn."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        for name in islice(cycle(works), turn % len(works), turn % len(works) + len(works)):
            found[name].append(seconds(works[name]))
    return found


def copies(size: int) -> dict[str, Callable[[], object]]:
    """Return ways to copy `size` bytes in memory. All memory pages are allocated in advance."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    from_numpy, to_numpy = source.numpy(), target.numpy()
    return {
        "memmove": lambda: ctypes.memmove(target.data_ptr(), source.data_ptr(), size),
        "numpy": lambda: np.copyto(to_numpy, from_numpy),
        "torch": lambda: target.copy_(source),
    }


def best(found: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Return the name with the lowest median."""
    return min(names, key=lambda name: float(np.median(found[name])))


def tensor_bytes(copied: StateCopied | None) -> int:
    """Return the number of bytes that a snapshot copies."""
    assert copied is not None, "no state was copied"
    return copied.tensor_bytes


def plain_state(trainer: Trainer) -> dict[str, Any]:
    """Return weights and moments in the form in which a user would pass them to torch's checkpoints."""
    optimizer = trainer._optimizer
    moments = {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return {"model": trainer.host.state_dict(), "moments": moments}
