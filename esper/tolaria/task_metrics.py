"""A metric of the task: its values on batches, and its figure over all of them. It gets copies and changes nothing."""

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
"""Most memory for the outputs and targets of a shard on which a metric is computed at once."""
WANTED = "return a real number, or a tensor or array of real numbers, that fit into 64-bit floats"


@dataclass(frozen=True, eq=False)
class Seen:
    """One evaluation batch and what the network made of it."""

    name: str
    """For people: which batch, of which shard."""
    samples: int
    output: Any
    target: Any

    def copied(self) -> Seen:
        """The same figures in tensors of their own: a function of the user may write into those that it gets."""
        return Seen(self.name, self.samples, mapped(torch.clone, self.output), mapped(torch.clone, self.target))


@dataclass
class Metric:
    """One metric of a task over some batches.

    Each call begins with the random numbers that the network left, whatever other metrics draw.
    A metric that returns several values for a batch counts with their mean. One that returns a single value (a number,
    or a tensor of one element) is computed on the joined outputs and targets of all batches.
    """

    name: str
    metric: Loss
    at_once: bool = False
    """It is computed on all batches at once."""
    draws: bool = False
    """It has drawn random numbers."""
    values: list[Tensor] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The field to blame."""
        return f"task.metrics[{self.name!r}]"

    def add(self, seen: Seen) -> None:
        """Take a batch into account. The first one shows whether the metric gives one value or several.

        Raises:
            TaskError: the metric gave no figure, or a single value where it gave several before.
        """
        if not self.values:
            self.values.append(value := self._of(seen))
            self.at_once = value.numel() == 1 and not (value.dim() > 0 and seen.samples == 1)
        elif not self.at_once:
            self.values.append(value := self._of(seen))
            if value.dim() == 0 and seen.samples > 1:
                figures = f"a single value on {seen.name}, {self.values[0].numel()} on the first batch"
                raise TaskError(
                    self.where, figures, "return one value per sample on every batch, or one on every batch"
                )

    def result(self, kept: Sequence[Seen]) -> float:
        """The metric over all batches that were added; `kept` holds them if it is computed at once.

        Raises:
            TaskError: it gave one value on the first batch and several on all of them.
        """
        if not self.at_once:
            values = torch.cat([value.reshape(-1) for value in self.values])
            if not values.numel():
                raise TaskError(self.where, "no value on any batch", WANTED)
            return float(values.mean())
        if len(kept) == 1:
            return float(self.values[0])
        value = self._of(self._whole(kept), fresh=True)
        if value.dim() == 0 or self.values[0].dim() > 0:
            return float(value.mean())
        figures = f"{value.numel()} values on {self._together(kept)}, a single one on {kept[0].name}"
        raise TaskError(self.where, figures, "return one value per sample on every batch, or one on every batch")

    def check_memory(self, first: Seen, shard: str, samples: int) -> None:
        """Raises: TaskError: the outputs and targets of a whole shard need too much memory."""
        held = sum(tensor.nbytes for tensor in tensors([first.output, first.target]))
        if (needed := math.ceil(held * samples / first.samples)) > WHOLE_BYTES:
            mend = f"it is one value for all {samples} samples of task.{shard} at once; return one value per sample"
            raise TaskError(self.where, f"{needed / 2**30:.1f} GiB of outputs", mend)

    def check_mean(self, some: Sequence[Seen], mean: float) -> None:
        """Let pass a metric whose values belong to samples, and one that draws, of which this cannot be seen.

        Raises:
            TaskError: on all batches at once its values have another mean.
        """
        try:
            whole = self._whole(some)
        except TaskError:  # batches of other lengths are not joined; then values of samples are the only way
            return
        at_once = float(self._of(whole, fresh=True).mean())
        if self.draws or (math.isnan(at_once) and math.isnan(mean)):
            return
        if not math.isclose(at_once, mean, rel_tol=1e-3, abs_tol=1e-6):
            figures = f"{at_once:.6g} on {self._together(some)}, {mean:.6g} by the mean of its values on each"
            raise TaskError(self.where, figures, "return one value per sample, or a single value for all of them")

    def _together(self, some: Sequence[Seen]) -> str:
        return f"{len(some)} batches at once"

    def _whole(self, kept: Sequence[Seen]) -> Seen:
        samples = sum(seen.samples for seen in kept)
        try:
            output, target = joined([seen.output for seen in kept]), joined([seen.target for seen in kept])
        except ValueError as error:
            mend = (
                f"it is computed on a whole shard at once, and {error}; return one value per sample, whose mean counts"
            )
            raise TaskError(self.where, "one value for a batch", mend) from error
        return Seen(self._together(kept), samples, output, target)

    def _of(self, seen: Seen, *, fresh: bool = False) -> Tensor:
        """The values of the metric on a batch, in double precision, on the CPU.

        Args:
            fresh: The batch is used by nothing else, so that the metric may write into it.
        """
        given, before = seen if fresh else seen.copied(), streams()
        with their_code(self.where, f"the metric on {seen.name}"):
            found = self.metric(given.output, given.target)
        self.draws = self.draws or held_by(before) != held_by(streams())
        restore_streams(before)
        try:
            return _figures(found)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            mend = f"make a metric of each of its entries: {WANTED}" if isinstance(found, Mapping) else WANTED
            raise TaskError(self.where, f"{_told(found)} on {seen.name}", mend) from error


def _figures(found: object) -> Tensor:
    """Raises: TypeError, ValueError, OverflowError, RuntimeError: these are no real numbers that a double holds."""
    if isinstance(found, Real) and not isinstance(found, np.generic):
        return torch.tensor(float(found), dtype=torch.float64)
    if isinstance(found, np.ndarray | np.generic) and not isinstance(found, np.ma.MaskedArray):
        found = torch.as_tensor(found)
    if not isinstance(found, Tensor) or found.is_complex() or found.is_nested or found.layout is not torch.strided:
        raise TypeError("no real numbers")
    return found.detach().to("cpu", torch.float64)


def _told(found: object) -> str:
    if isinstance(found, Tensor | np.ndarray):
        return f"{type(found).__name__} of {found.dtype} and shape {tuple(found.shape)}"
    return f"{type(found).__name__} beyond {sys.float_info.max:.1e}" if isinstance(found, int) else type(found).__name__
