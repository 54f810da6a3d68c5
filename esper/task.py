"""The task that a user defines: a model, its slots, data and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Loss = Callable[[Any, Any], Tensor]
"""(output, target) -> the scalar mean. For `sample_loss`: losses [B], or losses [B] and weights [B]."""


class Samples(Protocol):
    """A map-style data set of (input, target). It may have a method `group_of(index) -> int` for correlated samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...  # any input of the collate function


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


@dataclass(frozen=True, eq=False)
class Task:
    """A training problem: a model, its slots, data, and loss. A run changes no field of it.

    For each batch of training the calls are, in this order: `train[i]` for each sample, `collate(samples)`, the model
    (or `input_output(model, input)`), `loss(output, target)`, the backward pass, the optimizer's step, the scheduler's
    step. B is the number of samples in a batch; tensors are moved to `run.device` before the model sees them.

    Args:
        model: () -> nn.Module. The first weights are drawn from the seeded global generators. The function is called
            for the live network, its twin and each fork, in each process. Two calls must share no object.
        slots: Paths of modules that may grow, or patterns of paths: `*`, `?` and `[...]` match within a part between
            two dots, and `"*"` alone matches every module. A forward calls a slot at most once. Its output is one
            floating-point tensor: [B, C, H, W], [B, T, C], [B, C, T] or [B, C]. A module that cannot be a slot is
            refused if it is named. It is left out if only a pattern matches it.
        train: Map-style data set: `len(train)`, and `train[i]` -> (input, target). Random numbers must come from the
            seeded global generators.
        valid: As `train`. Its loss is measured at the end of a run. No decision depends on it.
        loss: (output, target) -> scalar tensor, the mean over the batch. The loss of a sample may depend on the other
            samples of its batch, as in a contrastive loss. Figures are then means over evaluation batches of 256
            samples; see docs/figures.md.
        test: As `train`. Its loss is measured before the first step and at the end. Default: a tenth of `train`.
        pick: As `train`. Candidates are ranked on it. Default: a tenth of `train`.
        gate: As `train`. The best candidate of a tournament is judged on it. Default: a tenth of `train`. Samples that
            are taken from `train` for pick, gate and test are never used in training. Groups are not split.
        sample_loss: (output, target) -> losses [B], or (losses [B], weights [B]) if samples have different weights. The
            weighted mean must be what `loss` returns. Default: derived from a torch loss that has `reduction`.
        metrics: Functions (output, target) -> a number, a tensor or an array, by name; see docs/figures.md. They are
            measured on test at the end. Default: none.
        batch_size: Samples of an optimizer step. Default: 64; `run.batch_size` overrides it.
        epochs: Default: 8; `run.epochs` overrides it.
        epoch_samples: Samples of an epoch. An epoch continues in the shuffled order of `train` after the last sample of
            the epoch before. Default: all of `train`. Samples beyond the last full batch are left out of the epoch.
        round_steps: Optimizer steps between two decisions on growth. By default a run of up to 600 steps has 15 rounds,
            and a longer run has 60 rounds. `run.round_steps` overrides it.
        group: Index of a sample -> int, which is equal for correlated samples, such as lines of one file. Gates then
            count groups instead of samples, and need 128 groups in pick and in gate (`growth.min_samples`). Not needed
            for a data set with a method `group_of`. Default: no groups.
        optimizer: (parameters) -> torch.optim.Optimizer. Called for the network, and again for each seed. Its
            learning rate for a seed is a warm-up times a cosine that falls to a tenth. Default: AdamW with lr 3e-3.
        scheduler: (optimizer, steps of the run) -> scheduler, stepped once after each optimizer step. Default: none.
        collate: (list of samples) -> (input, target), batch first. Default: torch's `default_collate`.
        input_output: (model, input) -> output, for a model that is not called as `model(input)`, or returns more than
            `loss` takes.
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
    metrics: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    batch_size: int = 64
    epochs: int = 8
    epoch_samples: int | None = None
    round_steps: int | None = None
    group: Callable[[int], int] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = _adamw
    scheduler: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    input_output: Callable[[nn.Module, Any], Any] | None = None
