"""What the user brings: a model, where it may grow, data and loss. It only names them; it trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Loss = Callable[[Any, Any], Tensor]
"""(output, target) -> scalar mean, or, for `sample_loss`, -> [B]."""


class Samples(Protocol):
    """A map-style data set of (input, target). It may carry `group_of(index) -> int` for correlated samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...  # whatever the user's collate function understands


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


@dataclass(frozen=True, eq=False)
class Task:
    """Everything about the user's own problem; all that has a default may be left out.

    `pick`, `gate` and `test` are split off `train` deterministically where they are not given. `batch_size` is
    global over ranks. An epoch is the e-th slice of `epoch_samples` of a keyed permutation (default: the whole set).
    """

    model: Callable[[], nn.Module]
    slots: Sequence[str]
    train: Samples
    valid: Samples
    loss: Loss
    test: Samples | None = None
    pick: Samples | None = None
    gate: Samples | None = None
    sample_loss: Loss | None = None
    """(output, target) -> losses [B], or -> (losses [B], weights [B]) where samples do not weigh alike; see
    docs/figures.md. Its weighted mean must be what `loss` returns. Derived for torch losses that have `reduction`."""
    metrics: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    """By name: (output, target) -> one value, computed on the whole test shard, or several, whose mean counts."""
    batch_size: int = 64
    epochs: int = 8
    epoch_samples: int | None = None
    round_steps: int | None = None
    group: Callable[[int], int] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = _adamw
    scheduler: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    input_output: Callable[[nn.Module, Any], Any] | None = None
    """(model, input) -> output, for models with an odd signature; by default `model(input)`."""
