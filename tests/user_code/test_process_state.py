"""Settings of the whole process: ours while we work, the caller's afterwards, and no change goes unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from esper import run
from esper.errors import ProcessStateChanged, TaskError
from esper.setup.survey import survey_of
from esper.testing import Bands, TinyHost, telling, tiny_config, tiny_task
from esper.user_code.process_state import CONTRADICTED, SETTINGS, Setting, changes, process_state

OTHER = {
    "torch.get_num_threads()": 2,
    "torch.get_default_dtype()": torch.float64,
    "torch.get_default_device()": torch.device("meta"),
    "torch.get_float32_matmul_precision()": "medium",
    "torch.get_autocast_dtype('cpu')": torch.float16,
    **{one.name: {"none": "tf32", "tf32": "ieee"}[one.ours] for one in SETTINGS if "fp32_precision" in one.name},
}
"""By name, a value that is not ours; of the rest, which are switches, the other one."""
IMMOVABLE = {"torch.backends.opt_einsum.enabled"}
"""Cannot be switched on where its package is missing."""
MOVABLE = [one for one in SETTINGS if one.name not in IMMOVABLE]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {one.name: one.get() for one in SETTINGS}
    yield
    for one in SETTINGS:
        if one.get() != before[one.name]:
            one.put(before[one.name])


def other(one: Setting) -> Any:
    if one.name in OTHER:
        return OTHER[one.name]
    return not one.ours


@pytest.mark.parametrize("one", MOVABLE, ids=lambda one: one.name)
def test_a_setting_is_ours_inside_and_the_callers_afterwards(one: Setting) -> None:
    one.put(other(one))
    with process_state(1):
        assert one.get() == (1 if one.ours is None else one.ours)
        assert changes() == []
        assert torch.get_float32_matmul_precision() == "highest"  # torch refuses to tell it among contradictions
        one.put(other(one))
        assert changes()[0] == (one.name, 1 if one.ours is None else one.ours, other(one))
    assert one.get() == other(one)
    assert changes() == []


def test_settings_that_contradict_each_other_are_the_callers_afterwards() -> None:
    torch.backends.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    before = [one.get() for one in SETTINGS]
    assert CONTRADICTED in before
    with process_state(1):
        assert changes() == []
    assert [one.get() for one in SETTINGS] == before


def test_a_caller_in_inference_mode_can_train() -> None:
    with torch.inference_mode(), process_state(1):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def two_threads() -> None:
    torch.set_num_threads(2)


def in_factory() -> TinyHost:
    two_threads()
    return TinyHost()


class InForward(TinyHost):
    def forward(self, x_BC: Tensor) -> Tensor:
        two_threads()
        return super().forward(x_BC)


class InBfloat16(TinyHost):
    def forward(self, x_BC: Tensor) -> Tensor:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        return super().forward(x_BC)


def test_a_change_that_hides_another_setting_is_told_by_its_own_name() -> None:
    why = telling("torch.backends.mkldnn.matmul.fp32_precision = bf16")
    with process_state(1), pytest.raises(TaskError, check=why):
        survey_of(tiny_task(model=InBfloat16), tiny_config())


class InSample(Bands):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        two_threads()
        return super().__getitem__(index)


def in_optimizer(parameters: Any) -> torch.optim.Optimizer:
    two_threads()
    return torch.optim.SGD(parameters, lr=0.1)


def in_metric(output: Tensor, target: Tensor) -> Tensor:
    two_threads()
    return cross_entropy(output, target)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"model": in_factory}, "task.model"),
        ({"model": InForward}, "task.model"),
        ({"train": InSample(1024, key=1)}, "task.train"),
        ({"optimizer": in_optimizer}, "task.optimizer"),
        ({"metrics": {"mine": in_metric}}, "task"),
    ],
)
def test_a_call_that_changes_a_setting_is_refused_before_the_run(task: dict[str, Any], field: str) -> None:
    why = telling("torch.get_num_threads() = 2", " 1")
    with process_state(1), pytest.raises(TaskError, check=why) as caught:
        survey_of(tiny_task(**task), tiny_config())
    assert caught.value.field == field


class Late(TinyHost):
    """Changes a setting in its 30th training step."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x_BC: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        if self.steps == 30:
            torch.use_deterministic_algorithms(True)
        return super().forward(x_BC)


def test_a_change_in_the_middle_of_a_run_is_told_at_the_fence(tmp_path: Path) -> None:
    config = tiny_config(run__dir=str(tmp_path / "run"), run__epochs=2, growth__enabled=False)
    with pytest.raises(
        ProcessStateChanged,
        check=telling(setting="torch.are_deterministic_algorithms_enabled()", expected="False", found="True"),
    ):
        run(tiny_task(model=Late), config)
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_of_the_caller_change_no_bit(tmp_path: Path) -> None:
    task = tiny_task()

    def weights(name: str) -> str:
        config = tiny_config(run__dir=str(tmp_path / name), run__epochs=1, growth__enabled=False)
        return run(task, config).weights_sha256

    plain = weights("plain")
    for one in MOVABLE:
        if one.name != "torch.get_default_device()":  # the task's own tensors were to lie there
            one.put(other(one))
    assert weights("other") == plain
    assert torch.get_default_dtype() is torch.float64


class Doubles(Bands):
    """Points of the default type at the time when the data set was made."""

    def __init__(self, count: int, key: int) -> None:
        super().__init__(count, key)
        self.inputs = self.inputs.to(torch.get_default_dtype())


def test_tensors_made_under_another_default_type_are_told_with_it() -> None:
    torch.set_default_dtype(torch.float64)
    task = tiny_task(train=Doubles(1024, key=1))
    why = telling("torch.float32", field="torch.get_default_dtype()", value="torch.float64")
    with process_state(1), pytest.raises(TaskError, check=why):
        survey_of(task, tiny_config())
