"""Which samples are seen when: every order is a function of the run seed, shards never meet, too little is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from esper.errors import ConfigError, TaskError
from esper.testing import Bands, telling, tiny_task
from esper.tolaria.data import EVALUATION_BATCH, SliceRule, TaskData, split_pair, to_device

RULE = SliceRule(units=64, per_group=2, minimum=32)


class Numbers(Dataset[tuple[Tensor, int]]):
    """Sample i is the number i, so that a batch says which samples are in it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor(index), index


class Files(Numbers):
    """Samples of which ten in a row are of one file."""

    def group_of(self, index: int) -> int:
        return index // 10


def make_data(run_seed: int = 0, batch_size: int = 16, rule: SliceRule = RULE, **changes: Any) -> TaskData:
    return TaskData(tiny_task(**({"train": Numbers(100)} | changes)), run_seed, batch_size, rule)


def seen(data: TaskData, steps: range) -> list[int]:
    return [int(i) for step in steps for i in data.batch(step)[1]]


# -- the order of training ---------------------------------------------------------------------------------------


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    forwards, backwards = make_data(), make_data()
    by_step = {step: seen(forwards, range(step, step + 1)) for step in range(30)}

    assert {step: seen(backwards, range(step, step + 1)) for step in reversed(range(30))} == by_step
    assert seen(make_data(run_seed=1), range(30)) != seen(forwards, range(30))
    epochs = [seen(forwards, range(6 * epoch, 6 * epoch + 6)) for epoch in range(5)]
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_what_fills_no_batch_is_not_seen_in_that_epoch() -> None:
    data = make_data(batch_size=16)

    assert data.steps_per_epoch == 6
    for epoch in range(3):
        assert len(set(seen(data, range(6 * epoch, 6 * epoch + 6)))) == 96


def test_an_epoch_is_a_slice_of_the_order_and_slices_make_up_the_lap() -> None:
    sliced, whole = make_data(batch_size=10, epoch_samples=30), make_data(batch_size=10)

    assert sliced.steps_per_epoch == 3
    assert seen(sliced, range(30)) == seen(whole, range(30))
    assert seen(sliced, range(10)) == seen(whole, range(10))  # epochs 0 to 2 and a third of epoch 3: one lap
    assert sorted(seen(sliced, range(10))) == list(range(100))


def test_a_batch_over_the_end_of_a_lap_has_the_last_samples_of_one_and_the_first_of_the_next() -> None:
    data = make_data(batch_size=15, epoch_samples=30)
    samples = seen(data, range(20))  # the seventh batch, for one, has samples 90 to 104 of the sequence
    for lap in range(3):
        assert sorted(samples[100 * lap : 100 * lap + 100]) == list(range(100))


def test_an_epoch_of_a_slice_leaves_out_only_its_own_rest() -> None:
    sliced, whole = make_data(batch_size=20, epoch_samples=50), make_data(batch_size=10)
    order = seen(whole, range(10))

    assert seen(sliced, range(4)) == [*order[:40], *order[50:90]]


@pytest.mark.parametrize("samples", [0, 101, -5])
def test_an_epoch_that_train_cannot_fill_is_refused(samples: int) -> None:
    with pytest.raises(TaskError, check=telling("1", "100", field="task.epoch_samples")):
        make_data(epoch_samples=samples)


def test_a_batch_larger_than_an_epoch_is_refused() -> None:
    with pytest.raises(ConfigError, check=telling("30", field="run.batch_size", value=31)):
        make_data(batch_size=31, epoch_samples=30)
    make_data(batch_size=32, train=Numbers(35), test=None)
    left = telling("31 samples", "34", "task.train", "test", field="task.batch_size", value=32)
    with pytest.raises(ConfigError, check=left):
        make_data(batch_size=32, train=Numbers(34), test=None)  # 32 is the task's own batch size


def test_what_is_drawn_while_loading_follows_from_the_step() -> None:
    class Noisy(Numbers):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.rand(3), index

    data = make_data(train=Noisy(100))
    first, after = data.batch(7)[0], torch.rand(1)
    data.batch(8)

    assert torch.equal(data.batch(7)[0], first)
    assert torch.equal(torch.rand(1), after)  # what dropout goes on with


def test_a_data_set_that_loads_in_bulk_is_asked_once_for_a_batch() -> None:
    asked: list[list[int]] = []

    class Bulk(Numbers):
        def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
            asked.append(indices)
            return [self[i] for i in indices]

    data = make_data(train=Bulk(100))
    batch = seen(data, range(1))

    assert asked == [batch]
    assert batch == seen(make_data(), range(1))


# -- the slices of the fences ------------------------------------------------------------------------------------


def test_each_fence_draws_its_own_slice_and_the_same_one_again() -> None:
    one, other = make_data(), make_data()
    slices = [one.slice("gate", fence) for fence in range(4)]

    assert slices == [other.slice("gate", fence) for fence in range(4)]
    assert len({part.indices for part in slices}) == 4
    assert one.slice("pick", 1).indices != one.slice("gate", 1).indices
    assert make_data(run_seed=1).slice("gate", 1) != slices[1]


def test_a_slice_of_groups_takes_so_many_groups_and_so_many_of_each() -> None:
    data = make_data(gate=Files(500), rule=SliceRule(units=40, per_group=3, minimum=32))
    first, second = data.slice("gate", 1), data.slice("gate", 2)

    assert first.groups == tuple(i // 10 for i in first.indices)
    assert len(Counter(first.groups)) == 40
    assert set(Counter(first.groups).values()) == {3}
    assert len(set(first.indices)) == 120
    assert set(first.groups) != set(second.groups or ())


def test_a_subset_has_the_groups_of_its_data_set() -> None:
    part = Subset(Subset(Files(1000), range(1, 1000, 2)), range(100, 400))
    groups = make_data(gate=part, group=lambda index: index).slice("gate", 1)
    assert groups.groups == tuple((2 * (index + 100) + 1) // 10 for index in groups.indices)


def test_the_largest_slice_of_groups_of_different_sizes_is_known() -> None:
    rule = SliceRule(units=40, per_group=3, minimum=32)
    data = make_data(gate=Numbers(500), rule=rule, group=lambda index: index if index < 100 else 100 + index % 25)
    drawn = [len(data.slice("gate", fence, 32).indices) for fence in range(30)]
    assert 32 < max(drawn) <= data.most_in_slice("gate", 32) == 25 * 3 + 7  # 25 groups of 16, and seven of one sample
    assert data.most_in_slice("gate") == 25 * 3 + 15
    assert make_data(rule=rule).most_in_slice("gate", 10**6) == len(make_data(rule=rule).shards["gate"])


def test_a_task_groups_what_a_data_set_does_not() -> None:
    data = make_data(gate=Files(500), pick=Numbers(500), group=lambda index: index % 50)
    pick, gate = data.slice("pick", 1), data.slice("gate", 1)

    assert pick.groups == tuple(i % 50 for i in pick.indices)
    assert gate.groups == tuple(i // 10 for i in gate.indices)  # it speaks for itself


@pytest.mark.parametrize(
    ("shard", "samples", "what"), [("pick", Numbers(31), "31 samples"), ("gate", Files(310), "31 groups")]
)
def test_a_shard_too_small_to_judge_on_is_refused_by_name_and_minimum(shard: str, samples: Numbers, what: str) -> None:
    unit = what.split()[1]
    mends = ("growth.min_samples = 32", f"{shard}=", f"32 {unit}", "31", "--no-growth", "growth.enabled=false")
    with pytest.raises(ConfigError, check=telling(*mends, field=f"task.{shard}", value=what)):
        make_data(**{shard: samples})


@pytest.mark.parametrize(
    ("train", "what", "whole"), [(Numbers(310), "31 samples", "310 samples"), (Files(310), "3 groups", "31 groups")]
)
def test_a_shard_split_off_too_small_names_what_it_is_a_tenth_of(train: Numbers, what: str, whole: str) -> None:
    count, unit = what.split()
    mends = ("pick=", "gate=", f"32 {unit}", f"320 {unit}", "growth.min_samples", count)
    with pytest.raises(ConfigError, check=telling(whole, "task.train", *mends, field="task.pick", value=what)):
        make_data(train=train, pick=None, gate=None)


def test_each_mend_that_a_refusal_names_is_one() -> None:
    def shards(rule: SliceRule = RULE, **changes: Any) -> list[int]:
        changes = {"train": Numbers(310), "pick": None, "gate": None} | changes
        return [len(make_data(rule=rule, **changes).shards[name]) for name in ("pick", "gate", "train")]

    assert shards(pick=Numbers(32), gate=Numbers(32)) == [32, 32, 310]
    assert shards(train=Numbers(320)) == [32, 32, 256]
    assert shards(SliceRule(units=64, per_group=2, minimum=31)) == [31, 31, 248]


def test_where_nothing_is_judged_the_same_split_of_a_small_train_is_not_refused() -> None:
    split = {"train": Numbers(310), "pick": None, "gate": None, "test": None}
    judged = make_data(rule=SliceRule(units=64, per_group=2, minimum=31), **split)
    free = make_data(rule=SliceRule(units=64, per_group=2, minimum=0), **split)
    for name in ("train", "pick", "gate", "test"):
        assert free.shards[name].indices.tolist() == judged.shards[name].indices.tolist()


def test_evaluation_takes_a_slice_in_its_order_and_a_shard_whole_or_evenly() -> None:
    data = make_data(gate=Numbers(400), valid=Numbers(300), rule=SliceRule(units=300, per_group=1, minimum=32))
    part = data.slice("gate", 1)
    assert part.groups is None
    assert len(set(part.indices)) == 300
    assert sorted(make_data(gate=Numbers(40)).slice("gate", 1).indices) == list(range(40))  # it is taken whole
    batches = [targets.tolist() for _, targets in data.batches_of(part)]

    assert [len(batch) for batch in batches] == [EVALUATION_BATCH, 300 - EVALUATION_BATCH]
    assert [i for batch in batches for i in batch] == list(part.indices)
    assert [int(i) for _, targets in data.whole("valid") for i in targets] == list(range(300))
    assert [int(i) for _, targets in data.evenly("valid", 4) for i in targets] == [0, 75, 150, 225]
    assert (data.count("valid", None), data.count("valid", 400), data.count("valid", 4)) == (300, 300, 4)


# -- shards that are split off -----------------------------------------------------------------------------------


def indices(data: TaskData, shard: str) -> set[int]:
    return {int(i) for i in data.shards[shard].indices}


def test_shards_split_off_train_are_disjoint_and_nothing_is_lost() -> None:
    data = make_data(train=Numbers(400), pick=None, gate=None, test=None)
    parts = [indices(data, shard) for shard in ("pick", "gate", "test", "train")]

    assert [len(part) for part in parts] == [40, 40, 40, 280]
    assert set.union(*parts) == set(range(400))
    assert set(seen(data, range(data.steps_per_epoch))) <= indices(data, "train")
    assert set(data.slice("gate", 1).indices) <= indices(data, "gate")


def test_the_split_is_the_same_whatever_the_run_seed() -> None:
    one, other = (make_data(seed, train=Numbers(400), gate=None) for seed in (0, 1))

    assert indices(one, "gate") == indices(other, "gate")


def test_whole_groups_stay_together_when_shards_are_split_off() -> None:
    data = make_data(train=Files(4000), pick=None, gate=None, test=None)
    parts = [indices(data, shard) for shard in ("pick", "gate", "test", "train")]
    groups = [{i // 10 for i in part} for part in parts]

    assert [len(part) for part in parts] == [400, 400, 400, 2800]
    assert sum(len(one) for one in groups) == len(set.union(*groups)) == 400
    assert set(data.slice("pick", 1).groups or ()) <= groups[0]


def test_a_train_too_small_to_give_test_a_sample_is_refused() -> None:
    with pytest.raises(TaskError, check=telling("9", "test=", field="task.test", value="0 samples")):
        make_data(train=Numbers(9), batch_size=4, test=None)


@pytest.mark.parametrize("shard", ["train", "valid", "test", "pick", "gate"])
def test_an_empty_or_an_iterable_data_set_is_refused_by_name(shard: str) -> None:
    class Stream(IterableDataset[tuple[Tensor, int]]):
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            return iter([])

    with pytest.raises(TaskError, check=telling(field=f"task.{shard}", value="empty data set")):
        make_data(**{shard: Numbers(0)})
    with pytest.raises(TaskError, check=telling("map-style", field=f"task.{shard}", value="Stream")):
        make_data(**{shard: Stream()})
    with pytest.raises(TaskError, check=telling("map-style", value="generator")):
        make_data(**{shard: (pair for pair in Bands(3, key=1))})


# -- batches -----------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    words: Tensor
    names: list[str]


def test_every_tensor_of_a_nested_batch_is_moved_and_nothing_else_is_changed() -> None:
    batch = {"pair": Pair(torch.zeros(2), ["a", "b"]), "more": [(torch.ones(2, 3), 7)], "none": None}

    moved = to_device(batch, torch.device("meta"))

    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].words.device.type == "meta"
    assert moved["pair"].names == ["a", "b"]
    ((inner, seven),) = moved["more"]
    assert (inner.device.type, inner.shape, seven, moved["none"]) == ("meta", (2, 3), 7, None)
    assert batch["pair"].words.device.type == "cpu"


@pytest.mark.parametrize("batch", [torch.zeros(2), (torch.zeros(2),), [1, 2, 3], {"x": 1, "y": 2}])
def test_a_batch_that_is_no_pair_is_refused(batch: object) -> None:
    with pytest.raises(TaskError, check=telling("a pair", field="task.train")):
        split_pair(batch)


@pytest.mark.parametrize(("first", "second"), [("train", "gate"), ("pick", "gate"), ("gate", "test")])
def test_one_data_set_cannot_be_two_shards(first: str, second: str) -> None:
    shared = Numbers(100)
    with pytest.raises(TaskError, check=telling(f"task.{first}", field=f"task.{second}")):
        make_data(**{first: shared, second: shared})
