"""Figures of a whole shard: its loss, and the task's metrics. It is given outputs; it runs no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.errors import TaskError
from esper.nested import joined, tensors
from esper.task import Loss, Task
from esper.their_code import their_code
from esper.tolaria.loss import check_agreement, sample_losses
from esper.tolaria.weighing import Weighted

WHOLE_BYTES = 2**31
"""Most memory for the outputs and targets of a shard on which a metric is computed at once."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One evaluation batch and what the network made of it."""

    samples: int
    output: Any
    target: Any


def means_over(batches: Iterable[Seen], sample_loss: Loss, metrics: Mapping[str, Loss]) -> dict[str, float]:
    """The loss of all samples together, as "loss", and each metric over all of them.

    A metric that returns several values for a batch counts with their mean. One that returns a single value (a number,
    or a tensor of one element) is computed on the joined outputs and targets of all batches.

    Raises:
        TaskError: a measure gave something else, or the batches cannot be joined for a metric that needs it.
    """
    losses: list[Weighted] = []
    figures = [_Metric(name, metric) for name, metric in metrics.items()]
    kept: list[Seen] = []
    for seen in batches:
        losses.append(sample_losses(sample_loss, seen.output, seen.target, seen.samples))
        for figure in figures:
            figure.add(seen, first=len(losses) == 1)
        if any(figure.at_once for figure in figures):
            kept.append(seen)
    return {"loss": Weighted.joined(losses).mean()} | {figure.name: figure.result(kept) for figure in figures}


def check_measures(task: Task, sample_loss: Loss, shard: str, some: Sequence[Seen], samples: int) -> None:
    """Let a task pass whose loss and metrics give, of a shard's batches, what they would give of the whole shard.

    Args:
        some: The first evaluation batch of the shard, and the last one if it has several.
        samples: In the whole shard.

    Raises:
        TaskError: a measure gave something else; it is no mean over samples; or it needs too much memory.
    """
    for seen in some:
        with torch.random.fork_rng([]):  # a loss may draw random numbers: both draw the same
            losses = sample_losses(sample_loss, seen.output, seen.target, seen.samples)
        with torch.random.fork_rng([]):
            check_agreement(task, seen.output, seen.target, losses)
    for name, metric in task.metrics.items():
        figure = _Metric(name, metric)
        for place, seen in enumerate(some):
            figure.add(seen, first=place == 0)
        mean = figure.result(some)
        if figure.at_once:
            figure.check_memory(some[0], shard, samples)
        elif len(some) > 1:
            figure.check_mean(some, mean)


@dataclass
class _Metric:
    name: str
    metric: Loss
    at_once: bool = False
    """It is computed on all batches at once."""
    values: list[Tensor] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"task.metrics[{self.name!r}]"

    def add(self, seen: Seen, *, first: bool) -> None:
        """Take a batch into account. The first one shows whether the metric gives one value or several."""
        if first or not self.at_once:
            self.values.append(self._of(seen))
        if first:
            one = self.values[0]
            self.at_once = one.numel() == 1 and not (one.dim() > 0 and seen.samples == 1)

    def result(self, kept: Sequence[Seen]) -> float:
        """The metric over all batches that were added; `kept` holds them if it is computed at once."""
        if not self.at_once:
            return float(torch.cat([value.reshape(-1) for value in self.values]).double().mean())
        return float(self.values[0]) if len(kept) == 1 else float(self._of(self._whole(kept)))

    def check_memory(self, first: Seen, shard: str, samples: int) -> None:
        held = sum(tensor.nbytes for tensor in tensors([first.output, first.target]))
        if (needed := math.ceil(held * samples / first.samples)) > WHOLE_BYTES:
            mend = f"it is one value for all {samples} samples of task.{shard} at once; return one value per sample"
            raise TaskError(self.where, f"{needed / 2**30:.1f} GiB of outputs", mend)

    def check_mean(self, some: Sequence[Seen], mean: float) -> None:
        """Raises: TaskError: its values are no values of samples: on two batches at once they have another mean."""
        try:
            whole = self._whole(some)
        except TaskError:  # batches of other lengths are not joined; then values of samples are the only way
            return
        at_once = float(self._of(whole).double().mean())
        if not math.isclose(at_once, mean, rel_tol=1e-3, abs_tol=1e-6):
            figures = f"{at_once:.6g} on two batches at once, {mean:.6g} by the mean of its values on each"
            raise TaskError(self.where, figures, "return one value per sample, or a single value for all of them")

    def _whole(self, kept: Sequence[Seen]) -> Seen:
        samples = sum(seen.samples for seen in kept)
        try:
            return Seen(samples, joined([seen.output for seen in kept]), joined([seen.target for seen in kept]))
        except ValueError as error:
            mend = (
                f"it is computed on a whole shard at once, and {error}; return one value per sample, whose mean counts"
            )
            raise TaskError(self.where, "one value for a batch", mend) from error

    def _of(self, seen: Seen) -> Tensor:
        with their_code(self.where, "the metric"):
            value = self.metric(seen.output, seen.target)
        if isinstance(value, Real | np.ndarray | np.generic):
            value = torch.as_tensor(value)
        if not isinstance(value, Tensor) or value.numel() == 0:
            raise TaskError(self.where, type(value).__name__, "a metric must return a number or a tensor of values")
        return value.float()
