"""The built-in image task: its data, its split, its model, and what happens without scikit-learn."""

from __future__ import annotations

import sys

import pytest
import torch

from esper.errors import TaskError
from esper.task import Task
from esper.tasks import digits
from esper.tasks.digits import SIZES, DigitReader, accuracy, load_images, split
from esper.testing import telling

SHARDS = ("train", "pick", "gate", "valid", "test")


@pytest.fixture(scope="module")
def task() -> Task:
    return digits.task()


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(TaskError, check=telling(field="digits")) as caught:
        digits.task()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_images_are_between_dark_and_bright_and_of_all_ten_digits():
    images, labels = load_images()
    assert images.shape == (1_797, 1, 8, 8)
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert labels.unique().tolist() == list(range(10))


def test_shards_are_disjoint_and_cover_the_data():
    numbers = torch.arange(1_797)
    dealt = split(numbers, numbers)
    assert sorted(torch.cat([dealt[name].tensors[0] for name in SHARDS]).tolist()) == numbers.tolist()


def test_an_image_keeps_its_digit_when_dealt_out():
    numbers = torch.arange(1_797)
    assert all(torch.equal(*shard.tensors) for shard in split(numbers, numbers).values())


def test_two_builds_of_the_task_are_equal(task: Task):
    torch.manual_seed(123)  # the split has its own stream
    again = digits.task()
    for name in SHARDS:
        for one, other in zip(getattr(task, name).tensors, getattr(again, name).tensors, strict=True):
            assert torch.equal(one, other)


def test_shards_are_large_enough_to_judge_and_an_epoch_fits_into_train(task: Task):
    assert {name: len(getattr(task, name)) for name in SIZES} == SIZES
    assert SIZES["pick"] >= 128
    assert SIZES["gate"] >= 256
    assert SIZES["test"] >= 300
    assert len(task.train) >= task.epoch_samples
    assert task.epochs * task.epoch_samples // task.batch_size == 15 * task.round_steps


def test_slots_are_two_feature_maps_and_a_vector(task: Task):
    model = task.model()
    shapes = {}
    for path in task.slots:
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, path=path: shapes.update({path: tuple(output.shape)})
        )
    model(torch.zeros(3, 1, 8, 8))
    assert shapes == {"features.0": (3, 4, 4, 4), "features.1": (3, 8, 2, 2), "vector": (3, 8)}


def test_no_sample_moves_when_another_does():
    model = DigitReader().train()
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[0] = 1 - changed[0]
    before, after = model(images), model(changed)
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])


def test_accuracy_is_the_share_read_correctly():
    logits = torch.eye(10)[torch.tensor([3, 1, 4, 1])]
    assert accuracy(logits, torch.tensor([3, 1, 4, 5])) == 0.75


def test_the_small_host_learns_and_leaves_room_to_grow(task: Task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    images, labels = task.train.tensors
    for _ in range(450):
        batch = torch.randint(len(images), (task.batch_size,))
        optimizer.zero_grad()
        task.loss(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    assert 0.80 < accuracy(model(task.test.tensors[0]), task.test.tensors[1]) < 0.95
