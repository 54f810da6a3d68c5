"""What the survey finds of data sets and shared functions that remember: refused by name, or harmless caches."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate

from esper.errors import TaskError
from esper.setup.survey import survey_of
from esper.task import Task
from esper.testing import Bands, TinyHost, telling, tiny_config, tiny_task

Sample = tuple[Tensor, Tensor]


class Train(Bands):
    """The tiny task's points, given through `change(self, index, x)`."""

    def __init__(self, change: Callable[[Train, int, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__(1024, key=1)
        vars(self).update({name: make() for name, make in attributes.items()})
        self.change = change

    def __getitem__(self, index: int) -> Sample:
        x, target = super().__getitem__(index)
        return self.change(self, index, x), target


def own_generator(data: Train, _index: int, x: Tensor) -> Tensor:
    return x + torch.rand(8, generator=data.own)


def own_numpy(data: Train, _index: int, x: Tensor) -> Tensor:
    return x + float(data.own.random())


def own_generator_at_few(data: Train, index: int, x: Tensor) -> Tensor:
    return x + torch.rand(8, generator=data.own) if index % 50 == 7 else x


def cached_noise(data: Train, index: int, x: Tensor) -> Tensor:
    if index not in data.cache:
        data.cache[index] = x + torch.rand(8)
    return data.cache[index]


def cached_noise_of_its_own(data: Train, index: int, x: Tensor) -> Tensor:
    if index not in data.cache:
        data.cache[index] = x + data.own.random()
    return data.cache[index]


def counted(data: Train, _index: int, x: Tensor) -> Tensor:
    data.drawn += 1
    return x * (data.drawn < 10_000)


def mixed_with_the_last(data: Train, _index: int, x: Tensor) -> Tensor:
    mixed, data.last = (x + data.last) / 2, x
    return mixed


def unseeded(_data: Train, _index: int, x: Tensor) -> Tensor:
    return x + float(np.random.default_rng().random())


HIDDEN = {
    "own": partial(Train, own_generator, own=torch.Generator),
    "own   ": partial(Train, own_generator_at_few, own=torch.Generator),
    "own ": partial(Train, own_numpy, own=lambda: np.random.default_rng(1)),
    "own  ": partial(Train, cached_noise_of_its_own, cache=dict, own=lambda: random.Random(1)),
    "cache": partial(Train, cached_noise, cache=dict),
    "drawn": partial(Train, counted, drawn=int),
    "last": partial(Train, mixed_with_the_last, last=lambda: torch.zeros(8)),
    "no attribute that esper can read": partial(Train, unseeded),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_data_set_that_remembers_is_refused_by_the_attributes_name(name: str) -> None:
    with pytest.raises(TaskError, check=telling("state_dict", "load_state_dict", field="task.train")) as caught:
        survey_of(tiny_task(train=HIDDEN[name]()), tiny_config())
    assert caught.value.field == "task.train"
    assert str(caught.value.value).startswith(name.strip())


def read_once(data: Train, index: int, x: Tensor) -> Tensor:
    if index not in data.cache:
        data.cache[index] = x * 2
    return data.cache[index]


def global_noise(_data: Train, _index: int, x: Tensor) -> Tensor:
    return x + torch.rand(8) + random.random() + float(np.random.rand())


def noise_of_the_index(_data: Train, index: int, x: Tensor) -> Tensor:
    return x + torch.rand(8, generator=torch.Generator().manual_seed(index))


HARMLESS = {
    "a cache of what the index gives": partial(Train, read_once, cache=dict),
    "the global generators": partial(Train, global_noise),
    "a generator seeded by the index": partial(Train, noise_of_the_index),
    "the last index": partial(Train, lambda data, index, x: (setattr(data, "last", index), x)[1], last=int),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_data_set_that_follows_from_index_and_stream_is_accepted(name: str) -> None:
    assert survey_of(tiny_task(train=HARMLESS[name]()), tiny_config()).total_steps == 320


def test_other_shards_are_tried_too() -> None:
    with pytest.raises(TaskError, check=telling(field="task.gate", value="drawn")):
        survey_of(tiny_task(gate=Train(counted, drawn=int)), tiny_config())


# -- what all copies of a network share --------------------------------------------------------------------------

CALLS = 0


def loss_with_a_global_counter(output: Tensor, target: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return cross_entropy(output, target)


class HostWithACounterOfItsClass(TinyHost):
    calls = 0

    def forward(self, x_BC: Tensor) -> Tensor:
        HostWithACounterOfItsClass.calls += 1
        return super().forward(x_BC)


def loss_with_a_closure() -> Callable[[Tensor, Tensor], Tensor]:
    weight = torch.ones(4)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        weight.mul_(0.99)
        return cross_entropy(output, target, weight)

    return loss


class Warming:
    """A loss that grows with its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return cross_entropy(output, target) * min(1.0, self.calls / 100)


class Augmenting:
    """A collate with a source of random numbers of its own."""

    def __init__(self) -> None:
        self.own = random.Random(1)

    def __call__(self, samples: list[Sample]) -> Sample:
        inputs, targets = default_collate(samples)
        return inputs * self.own.random(), targets


def own_sample_loss(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target, reduction="none")


def task_with(**changes: Any) -> Task:
    return tiny_task(sample_loss=own_sample_loss, **changes)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"loss": loss_with_a_global_counter}, f"module {__name__}", "CALLS"),
        ({"model": HostWithACounterOfItsClass}, f"module {__name__}", "HostWithACounterOfItsClass.calls"),
        ({"loss": loss_with_a_closure()}, "task.loss", "<closure>.weight"),
        ({"loss": Warming()}, "task.loss", "calls"),
    ],
)
def test_state_that_all_copies_share_is_refused_by_its_name(changes: dict[str, Any], field: str, value: str) -> None:
    with pytest.raises(TaskError, match="or keep it in the model as a buffer") as caught:
        survey_of(task_with(**changes), tiny_config())
    assert (caught.value.field, caught.value.value) == (field, value)


COUNTING = """
from torch.nn.functional import cross_entropy

CALLS = 0


def loss(output, target):
    global CALLS
    CALLS += 1
    return cross_entropy(output, target)
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A loss that counts its calls in a global of its module, which lies in a folder of the given name."""

    def loss(folder: str) -> Any:
        file = tmp_path / folder / "theirlib.py"
        file.parent.mkdir()
        file.write_text(COUNTING)
        spec = spec_from_file_location("theirlib", file)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "theirlib", module)
        spec.loader.exec_module(module)
        return module.loss

    return loss


def test_a_counter_of_an_installed_package_is_no_state_of_the_users(counting: Callable[[str], Any]) -> None:
    survey_of(task_with(loss=counting("site-packages")), tiny_config())
    with pytest.raises(TaskError, check=telling(field="module theirlib", value="CALLS")):
        survey_of(task_with(loss=counting("hers")), tiny_config())


LOG: list[int] = []


@lru_cache
def table(length: int) -> Tensor:
    return torch.ones(length)


def logging_loss(output: Tensor, target: Tensor) -> Tensor:
    LOG.append(len(target))
    return cross_entropy(output, target) + 0 * table(len(target)).sum()


def test_a_log_and_a_cache_of_a_module_are_no_state() -> None:
    survey_of(task_with(loss=logging_loss), tiny_config())
    assert LOG


# -- what makes the batches --------------------------------------------------------------------------------------

OWN = torch.Generator()


def collated(noise: Callable[[], float]) -> Callable[[list[Sample]], tuple[Tensor, Tensor]]:
    def collate(samples: list[Sample]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*samples, strict=True)
        return torch.stack(inputs) + noise(), torch.stack(targets)

    return collate


DRAWS_IN_COLLATE = {
    "own": Augmenting(),
    "OWN of module": collated(lambda: torch.rand((), generator=OWN).item()),
    "<closure>.noise.<closure>.own": collated((lambda own: lambda: own.random())(random.Random(1))),
    "two batches of the same samples": collated(lambda: float(np.random.default_rng().random())),
}


@pytest.mark.parametrize("name", DRAWS_IN_COLLATE)
def test_a_collate_function_that_draws_from_a_generator_of_its_own_is_blamed_itself(name: str) -> None:
    with pytest.raises(TaskError, check=telling(field="task.collate")) as caught:
        survey_of(tiny_task(collate=DRAWS_IN_COLLATE[name]), tiny_config())
    assert caught.value.field == "task.collate"
    assert str(caught.value.value).startswith(name)
