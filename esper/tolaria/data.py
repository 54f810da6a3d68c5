"""Selects samples: shards, the order of training, and the slices on which fences judge.

The shards depend on the task only. Order and slices also depend on the run seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from esper.errors import DependencyViolationError, TaskError
from esper.ground.nested import mapped
from esper.ground.random_streams import generator, seed_by, seed_process
from esper.task import Samples, Task
from esper.tolaria.shares import JUDGING, SPLIT_SHARE, Units, check_batch, check_judging, check_test, split_off
from esper.tolaria.training_order import TrainingOrder
from esper.tolaria.trees import copied
from esper.user_code.extra_state import state_of
from esper.user_code.their_code import TheirCode, their_code

SHARD_NAMES = ("train", "pick", "gate", "valid", "test")
SAMPLE = {name: their_code(f"task.{name}", "a sample of the data set") for name in SHARD_NAMES}
_SEQUENCES = (list, tuple)  # as a constant, because `list | tuple` makes a new object in each step
EVALUATION_BATCH = 256
"""Number of samples per forward pass of evaluation. Another value changes the bits of measured losses."""


@dataclass(frozen=True)
class Shard:
    """A named selection of samples of a data set."""

    name: str
    samples: Samples
    indices: np.ndarray[Any, np.dtype[np.int64]]
    group_of: Callable[[int], int] | None
    """Index of a sample -> number of the group to which it belongs. Samples of a group are correlated. None: all
    samples are independent."""

    def __len__(self) -> int:
        return len(self.indices)

    def groups(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Return the group of every sample, in the order of `indices`. None if samples have no groups."""
        if self.group_of is None:
            return None
        with their_code("task.group", "the group of a sample"):
            return np.fromiter((self.group_of(int(i)) for i in self.indices), dtype=np.int64, count=len(self.indices))


@dataclass(frozen=True)
class Slice:
    """The samples of a shard on which a fence judges."""

    shard: str
    fence: int
    indices: tuple[int, ...]
    groups: tuple[int, ...] | None
    """Group of each sample. None if samples have no groups."""


@dataclass(frozen=True)
class SliceRule:
    """The size of a slice: `units` samples, or `units` groups with at most `per_group` samples of each group."""

    units: int
    per_group: int
    minimum: int
    """Smallest allowed number of samples, or of groups, in a judging shard. 0 without growth."""


class TaskData:
    """The shards of a task. All samples are loaded through this class."""

    def __init__(self, task: Task, run_seed: int, batch_size: int, rule: SliceRule, split: int = 0) -> None:
        """Divide the samples into shards.

        Args:
            split: Key of the draw that splits shards off from `task.train`. A run has 0.
        """
        if batch_size < 1:
            raise TaskError("task.batch_size", batch_size, "use 1 or more")
        self.batch_size = batch_size
        self._run_seed = run_seed
        self._rule = rule
        self._collate = task.collate or default_collate
        self.shards = _resolve_shards(task, split)
        whole = partial(_units, Shard("train", task.train, np.arange(len(task.train)), _grouping(task, task.train)))
        check_judging(task, {name: _units(self.shards[name]) for name in JUDGING}, whole, rule.minimum)
        check_test(len(self.shards["test"]), whole)
        self.epoch_samples = task.epoch_samples if task.epoch_samples is not None else len(self.shards["train"])
        if not 0 < self.epoch_samples <= len(self.shards["train"]):
            raise TaskError("task.epoch_samples", task.epoch_samples, f"use 1 to {len(self.shards['train'])} samples")
        check_batch(task, batch_size, self.epoch_samples, len(self.shards["train"]))
        self._stateful = stateful(self.shards)
        self.made_with = self.state()
        """State of each stateful data set before the first batch; see `state`."""
        self._order = TrainingOrder(run_seed, self.shards["train"].indices, self.epoch_samples, batch_size)
        self._groups = {name: self.shards[name].groups() for name in JUDGING}

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch. An incomplete last batch is not used."""
        return self._order.steps_per_epoch

    def state(self) -> dict[str, Any]:
        """Return a copy of the present state of each stateful data set. The key is the name of the first shard that
        uses the data set.
        """
        return {name: copied(state_of(f"task.{name}", one), _copy) for name, one in self._stateful.items()}

    @contextmanager
    def at(self, state: Mapping[str, Any]) -> Iterator[None]:
        """Load a state into the stateful data sets for the block. Afterwards, load the state `made_with`.

        All hosts in a process load from the same data set objects. So each host stores its own state of these objects.

        Raises:
            DependencyViolationError: `state` belongs to other stateful data sets. Nothing was changed.
            Exception: the error of a data set, marked as an error of the user's code.
        """
        self._load_state(state)
        try:
            yield
        finally:
            self._load_state(self.made_with)

    def _load_state(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self._stateful.keys():
            found = sorted(state.keys() ^ self._stateful.keys())
            raise DependencyViolationError("snapshot", "data sets with a state differ from the task's", str(found))
        for name, one in self._stateful.items():
            kept = copied(state[name], _copy)
            with their_code(f"task.{name}", "load_state_dict"):
                one.load_state_dict(kept)

    def batch(self, step: int) -> Any:
        """Seed this process by (run seed, step), and load the collated batch of an optimizer step.

        The rest of the step uses the same random streams. So the live host and its forks draw the same random numbers.
        """
        key, indices = self._order.draw(step)
        seed_by(key)
        return self._load("train", indices)

    def probe(self, shard: str, indices: Sequence[int]) -> Any:
        """Seed this process for a probe, and load some samples of a shard, collated."""
        seed_process(self._run_seed, "probe", shard, *indices)
        return self._load(shard, indices)

    def samples(self, shard: str, indices: Sequence[int]) -> list[Any]:
        """Load the samples of `probe` with the same seed, not collated."""
        seed_process(self._run_seed, "probe", shard, *indices)
        return self._items(shard, indices)

    def collated(self, samples: list[Any]) -> Any:
        """Seed this process, with the same seed on each call, and collate samples."""
        seed_process(self._run_seed, "probe")
        return self._batch(samples)

    def slice(self, shard: str, fence: int, units: int | None = None) -> Slice:
        """Draw the samples of `shard` on which fence `fence` judges.

        The draw depends only on run seed, shard and fence. All networks that are judged at a fence get the same slice.
        The draws of fences are independent.

        Args:
            units: Number of samples, or of groups. A smaller slice is the first part of a larger one. None: the number
                in the rule.
        """
        most = self._rule.units if units is None else units
        draw = generator(self._run_seed, "slice", shard, fence)
        chosen, groups = self.shards[shard], self._groups[shard]
        if groups is None:
            at = draw.permutation(len(chosen))[:most]
            return Slice(shard, fence, tuple(int(chosen.indices[i]) for i in at), None)
        names = draw.permutation(np.unique(groups))[:most]
        picked: list[int] = []
        for name in names:
            members = np.flatnonzero(groups == name)
            picked += [int(i) for i in draw.permutation(members)[: self._rule.per_group]]
        return Slice(shard, fence, tuple(int(chosen.indices[i]) for i in picked), tuple(int(groups[i]) for i in picked))

    def most_in_slice(self, shard: str, units: int | None = None) -> int:
        """Return the largest number of samples that a slice of a shard can have. The groups may differ in size.

        Args:
            units: See `slice`.
        """
        most, groups = self._rule.units if units is None else units, self._groups[shard]
        if groups is None:
            return min(most, len(self.shards[shard]))
        sizes = np.minimum(np.unique(groups, return_counts=True)[1], self._rule.per_group)
        return int(np.sort(sizes)[::-1][:most].sum())

    def batches_of(self, part: Slice) -> Iterator[Any]:
        """Yield the samples of a slice in batches of `EVALUATION_BATCH`, collated."""
        yield from self._batches(part.shard, part.indices)

    def whole(self, shard: str) -> Iterator[Any]:
        """Yield all samples of a shard in batches of `EVALUATION_BATCH`, collated."""
        yield from self.evenly(shard, len(self.shards[shard]))

    def count(self, shard: str, most: int | None) -> int:
        """Return the number of samples of a shard, and at most `most` if it is given."""
        samples = len(self.shards[shard])
        return samples if most is None else min(samples, most)

    def evenly(self, shard: str, count: int) -> Iterator[Any]:
        """Yield `count` evenly spaced samples of a shard in batches of `EVALUATION_BATCH`, collated."""
        indices = self.shards[shard].indices
        yield from self._batches(shard, [int(indices[i * len(indices) // count]) for i in range(count)])

    def tried(self, shard: str) -> Iterator[tuple[str, int, Any]]:
        """Yield the first and the last batch of `whole`.

        If there are more than two batches, also yield a batch of evenly spaced samples.

        Returns:
            (name for messages, number of samples, batch) of each.
        """
        indices = [int(i) for i in self.shards[shard].indices]
        last = (len(indices) - 1) // EVALUATION_BATCH
        parts = {batch_name(place, f"task.{shard}"): _evaluation_part(indices, place) for place in sorted({0, last})}
        if last > 1:
            spread = np.linspace(0, len(indices) - 1, EVALUATION_BATCH).astype(int)
            parts[f"a batch of {EVALUATION_BATCH} samples spread over task.{shard}"] = [indices[i] for i in spread]
        for name, part in parts.items():
            yield name, len(part), next(self._batches(shard, part))

    def _batches(self, shard: str, indices: Sequence[int]) -> Iterator[Any]:
        for place in range(math.ceil(len(indices) / EVALUATION_BATCH)):
            seed_process(self._run_seed, "evaluate", shard, place * EVALUATION_BATCH)
            yield self._load(shard, _evaluation_part(indices, place))

    def _load(self, shard: str, indices: Sequence[int]) -> Any:
        """Load and collate samples. Every training step calls this, so it does not call `_items` and `_batch`."""
        samples = SAMPLE[shard].run(_items_of, self.shards[shard].samples, indices)
        return _collating(len(samples)).run(self._collate, samples)

    def _batch(self, samples: list[Any]) -> Any:
        return _collating(len(samples)).run(self._collate, samples)

    def _items(self, shard: str, indices: Sequence[int]) -> list[Any]:
        return SAMPLE[shard].run(_items_of, self.shards[shard].samples, indices)


def batch_name(place: int, of: str) -> str:
    """Return the name of an evaluation batch for messages. The first batch is batch 1."""
    return f"batch {place + 1} of {of}"


def _evaluation_part(indices: Sequence[int], place: int) -> Sequence[int]:
    return indices[place * EVALUATION_BATCH : (place + 1) * EVALUATION_BATCH]


def stateful(shards: Mapping[str, Shard]) -> dict[str, Any]:  # Any: a data set with the two methods
    """Return the data sets that have a state (`state_dict`), without duplicates.

    The key of a data set is its first shard.

    Raises:
        TaskError: a data set has only one of `state_dict` and `load_state_dict`.
    """
    found: dict[str, Any] = {}
    for name, shard in shards.items():
        samples = shard.samples
        methods = [method for method in ("state_dict", "load_state_dict") if hasattr(samples, method)]
        if len(methods) == 1:
            raise TaskError(
                f"task.{name}",
                methods[0],
                "a data set with a state needs both state_dict and load_state_dict; add the other",
            )
        if methods and not any(samples is other for other in found.values()):
            found[name] = samples
    return found


def _items_of(samples: Samples, indices: Sequence[int]) -> list[Any]:
    many = getattr(samples, "__getitems__", None)  # torch's convention for data sets that load in bulk
    return list(many(list(indices))) if many is not None else [samples[i] for i in indices]


@cache
def _collating(samples: int) -> TheirCode:
    return their_code("task.collate", f"a batch of {samples} samples")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a nested batch to a device. Other values are not changed."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device)
    return mapped(lambda tensor: tensor.to(device), batch)


def split_pair(batch: Any) -> tuple[Any, Any]:
    """Return (inputs, targets) of a collated batch.

    Raises:
        TaskError: the batch is not a pair.
    """
    if not isinstance(batch, _SEQUENCES) or len(batch) != 2:
        mend = "a sample must be a pair (input, target); give task.collate, (list of samples) -> (inputs, targets)"
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, Sized) else "")
        raise TaskError("task.train", what, mend)
    return batch[0], batch[1]


def _resolve_shards(task: Task, split: int) -> dict[str, Shard]:
    given = {name: getattr(task, name) for name in SHARD_NAMES}
    for name, samples in given.items():
        if samples is None:
            continue
        if isinstance(samples, torch.utils.data.IterableDataset) or not hasattr(samples, "__len__"):
            raise TaskError(
                f"task.{name}", type(samples).__name__, "use a map-style data set; iterable ones cannot be replayed"
            )
        if len(samples) == 0:
            raise TaskError(f"task.{name}", "empty data set", "give it at least one sample")
        for other in SHARD_NAMES[: SHARD_NAMES.index(name)]:
            if samples is given[other]:
                raise TaskError(
                    f"task.{name}",
                    f"the data set of task.{other}",
                    "give it other samples: no two data sets of a task may share samples",
                )
    lots = _split_off(task, split_off(task), split)
    shards = {}
    for name, samples in given.items():
        if name in lots:
            shards[name] = Shard(name, task.train, lots[name], _grouping(task, task.train))
        else:
            shards[name] = Shard(name, samples, np.arange(len(samples)), _grouping(task, samples))
    return shards


def _split_off(task: Task, missing: list[str], split: int) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Split `train` into the missing shards, and use the rest for training. Return name -> indices.

    The split never divides a group. The split is the same for every run seed. `split` is its key.
    """
    if not missing:
        return {}
    count = len(task.train)
    group_of = _grouping(task, task.train)
    with their_code("task.group", "the group of a sample"):
        units = np.arange(count) if group_of is None else np.array([group_of(i) for i in range(count)])
    names = generator(split, "split").permutation(np.unique(units))
    each = int(len(names) * SPLIT_SHARE)
    lots = {}
    for place, name in enumerate(missing):
        lots[name] = np.flatnonzero(np.isin(units, names[place * each : (place + 1) * each]))
    lots["train"] = np.flatnonzero(np.isin(units, names[len(missing) * each :]))
    return lots


def _grouping(task: Task, samples: Samples) -> Callable[[int], int] | None:
    own = _own_groups(samples)
    return own if own is not None else task.group  # the data set's groups take precedence over the task's groups


def _own_groups(samples: object) -> Callable[[int], int] | None:
    """Return the function `group_of` of a data set, or of the one of which it is a `Subset`. None: it has none."""
    own: Callable[[int], int] | None = getattr(samples, "group_of", None)
    if own is None and isinstance(samples, Subset) and (whole := _own_groups(samples.dataset)) is not None:
        return lambda index: whole(samples.indices[index])
    return own


def _units(shard: Shard) -> Units:
    groups = shard.groups()
    return Units(len(shard), "samples") if groups is None else Units(len(np.unique(groups)), "groups")
