"""A metric of the task: its values on batches, and its value over all batches. The metric function gets copies."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.errors import TaskError
from esper.ground.nested import joined, mapped, tensors
from esper.ground.random_streams import restore_streams, streams
from esper.task import Loss
from esper.user_code.attributes import held_by
from esper.user_code.their_code import their_code

WHOLE_BYTES = 2**31
"""Largest size, in bytes, of a shard's outputs and targets for a metric that is computed on all batches at once."""
WANTED = "return a real number, or a tensor or array of real numbers, that fit into 64-bit floats"


@dataclass(frozen=True, eq=False)
class Seen:
    """One evaluation batch: the network's outputs, and the targets."""

    name: str
    """Name of the batch and its shard, for messages."""
    samples: int
    output: Any
    target: Any

    def copied(self) -> Seen:
        """Return a copy with cloned tensors.

        The user's functions get copies, because they may write into their arguments.
        """
        return Seen(self.name, self.samples, mapped(torch.clone, self.output), mapped(torch.clone, self.target))


@dataclass
class Metric:
    """One metric of a task over some batches.

    Each call begins with the random streams as they are after the network's forward, so that metrics cannot influence
    each other. If a metric returns several values for a batch, the result is the mean of the values of all batches. If
    the metric returns a single value (a number, or a tensor of one element), the result is computed on all batches
    joined.
    """

    name: str
    metric: Loss
    at_once: bool = False
    """True if the result is computed on all batches joined. The number of values on the first batch decides this."""
    draws: bool = False
    """True if a call has drawn random numbers."""
    values: list[Tensor] = field(default_factory=list)
    """Values of each batch so far. If `at_once`, it contains only the values of the first batch."""

    @property
    def where(self) -> str:
        """Name of the field in the task, for errors."""
        return f"task.metrics[{self.name!r}]"

    def add(self, seen: Seen) -> None:
        """Add a batch. The first batch decides whether the metric returns one value or several.

        Raises:
            TaskError: the metric did not return real numbers, or it returned several values on the first batch and a
                single value on this batch.
        """
        if not self.values:
            self.values.append(value := self._values_on(seen))
            self.at_once = value.numel() == 1 and not (value.dim() > 0 and seen.samples == 1)
        elif not self.at_once:
            self.values.append(value := self._values_on(seen))
            if value.dim() == 0 and seen.samples > 1:
                figures = f"a single value on {seen.name}, {self.values[0].numel()} on the first batch"
                raise TaskError(
                    self.where, figures, "return one value per sample on every batch, or one on every batch"
                )

    def result(self, batches: Sequence[Seen]) -> float:
        """Return the value of the metric over all added batches.

        Args:
            batches: The batches that were added. They are used only if `at_once`.

        Raises:
            TaskError: the metric returned no value on any batch; or it returned one value on the first batch, but
                several values on all batches joined.
        """
        if not self.at_once:
            values = torch.cat([value.reshape(-1) for value in self.values])
            if not values.numel():
                raise TaskError(self.where, "no value on any batch", WANTED)
            return float(values.mean())
        if len(batches) == 1:
            return float(self.values[0])
        value = self._values_on(self._joined_batches(batches), fresh=True)
        if value.dim() == 0 or self.values[0].dim() > 0:
            return float(value.mean())
        figures = f"{value.numel()} values on {self._joined_name(batches)}, a single one on {batches[0].name}"
        raise TaskError(self.where, figures, "return one value per sample on every batch, or one on every batch")

    def check_memory(self, first: Seen, shard: str, samples: int) -> None:
        """Check the memory of a whole shard.

        Raises:
            TaskError: its outputs and targets need more than `WHOLE_BYTES`.
        """
        held = sum(tensor.nbytes for tensor in tensors([first.output, first.target]))
        if (needed := math.ceil(held * samples / first.samples)) > WHOLE_BYTES:
            mend = f"it is one value for all {samples} samples of task.{shard} at once; return one value per sample"
            raise TaskError(self.where, f"{needed / 2**30:.1f} GiB of outputs", mend)

    def check_mean(self, some: Sequence[Seen], mean: float) -> None:
        """Refuse a metric that returns several values for a batch, if these are not one value for each sample.

        A metric that draws random numbers is not checked, because its values differ in each call.

        Raises:
            TaskError: `mean`, the mean over the batches, differs from the mean of the metric's values on all batches
                joined.
        """
        try:
            whole = self._joined_batches(some)
        except TaskError:  # batches of different lengths cannot be joined, so there is nothing to compare
            return
        at_once = float(self._values_on(whole, fresh=True).mean())
        if self.draws or (math.isnan(at_once) and math.isnan(mean)):
            return
        if not math.isclose(at_once, mean, rel_tol=1e-3, abs_tol=1e-6):
            figures = f"{at_once:.6g} on {self._joined_name(some)}, {mean:.6g} by the mean of its values on each"
            raise TaskError(self.where, figures, "return one value per sample, or a single value for all of them")

    def _joined_name(self, some: Sequence[Seen]) -> str:
        return f"{len(some)} batches at once"

    def _joined_batches(self, batches: Sequence[Seen]) -> Seen:
        samples = sum(seen.samples for seen in batches)
        try:
            output, target = joined([seen.output for seen in batches]), joined([seen.target for seen in batches])
        except ValueError as error:
            mend = f"it is computed on a whole shard at once, and {error}; return one value per sample, to be averaged"
            raise TaskError(self.where, "one value for a batch", mend) from error
        return Seen(self._joined_name(batches), samples, output, target)

    def _values_on(self, seen: Seen, *, fresh: bool = False) -> Tensor:
        """Call the metric on a batch, and return the values in double precision, on the CPU.

        Args:
            fresh: True if no other code uses the batch. In this case the batch is not copied, and the metric may write
                into it.
        """
        given, before = seen if fresh else seen.copied(), streams()
        with their_code(self.where, f"the metric on {seen.name}"):
            found = self.metric(given.output, given.target)
        self.draws = self.draws or held_by(before) != held_by(streams())
        restore_streams(before)
        try:
            return _as_doubles(found)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            mend = f"make a metric of each of its entries: {WANTED}" if isinstance(found, Mapping) else WANTED
            raise TaskError(self.where, f"{_description(found)} on {seen.name}", mend) from error


def _as_doubles(found: object) -> Tensor:
    """Convert the values of a metric to doubles.

    Raises:
        TypeError, ValueError, OverflowError, RuntimeError: the values are not real numbers, or are too large.
    """
    if isinstance(found, Real) and not isinstance(found, np.generic):
        return torch.tensor(float(found), dtype=torch.float64)
    if isinstance(found, np.ndarray | np.generic) and not isinstance(found, np.ma.MaskedArray):
        found = torch.as_tensor(found)
    if not isinstance(found, Tensor) or found.is_complex() or found.is_nested or found.layout is not torch.strided:
        raise TypeError("no real numbers")
    return found.detach().to("cpu", torch.float64)


def _description(found: object) -> str:
    if isinstance(found, Tensor | np.ndarray):
        return f"{type(found).__name__} of {found.dtype} and shape {tuple(found.shape)}"
    return f"{type(found).__name__} beyond {sys.float_info.max:.1e}" if isinstance(found, int) else type(found).__name__
