"""Losses: per sample where torch's own allow it, refused where they cannot be, and never moved to another device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss

from esper.errors import LossDeviceMismatch, TaskError
from esper.telemetry import Telemetry
from esper.testing import telling, tiny_task
from esper.tolaria.loss import batch_loss, sample_loss, sample_losses

CLASSES = torch.tensor([0, 3, 1])
SCORES = torch.tensor([[2.0, 0.0, 1.0, -1.0], [0.0, 0.5, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0]])


def by_hand(scores: Tensor, classes: Tensor) -> Tensor:
    return torch.stack([row.logsumexp(0) - row[int(k)] for row, k in zip(scores, classes, strict=True)])


@pytest.mark.parametrize(
    "loss", [cross_entropy, nn.CrossEntropyLoss(), partial(cross_entropy)], ids=["function", "module", "partial"]
)
def test_a_loss_of_torch_is_taken_sample_by_sample(loss: Any) -> None:
    losses = sample_loss(tiny_task(loss=loss))(SCORES, CLASSES)

    assert torch.allclose(losses, by_hand(SCORES, CLASSES))
    assert loss(SCORES, CLASSES).item() == pytest.approx(losses.mean().item())  # and the task's own is as it was


def test_a_loss_with_a_value_for_every_number_is_averaged_within_its_sample() -> None:
    output, target = torch.arange(12.0).reshape(2, 3, 2), torch.zeros(2, 3, 2)
    losses, weights = sample_loss(tiny_task(loss=nn.MSELoss()))(output, target)

    assert weights.tolist() == [6, 6]
    assert torch.allclose(losses, torch.stack([(part**2).mean() for part in output]))


def test_a_sequence_of_classes_gives_one_loss_per_sequence() -> None:
    scores, classes = torch.randn(5, 4, 7), torch.zeros(5, 7, dtype=torch.long)

    losses, weights = sample_loss(tiny_task(loss=cross_entropy))(scores, classes)
    assert losses.shape == (5,)
    assert weights.tolist() == [7] * 5


@pytest.mark.parametrize(
    "loss", [nn.KLDivLoss(reduction="batchmean"), partial(kl_div, reduction="batchmean")], ids=["module", "partial"]
)
def test_the_batch_mean_of_a_divergence_is_the_mean_of_its_samples(loss: Any) -> None:
    output, target = SCORES.log_softmax(1), SCORES.flip(0).softmax(1)

    losses = sample_loss(tiny_task(loss=loss))(output, target)
    assert losses.shape == (3,)
    assert losses.mean().item() == pytest.approx(loss(output, target).item())


def test_a_tasks_own_loss_per_sample_goes_before_all() -> None:
    own = partial(cross_entropy, reduction="none")

    assert sample_loss(tiny_task(loss=lambda output, _target: output.sum(), sample_loss=own)) is own


def test_a_loss_without_reduction_is_refused_by_name() -> None:
    def my_loss(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target)

    class Own(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return cross_entropy(output, target)

    with pytest.raises(TaskError, check=telling("None", "my_loss", field="task.sample_loss")):
        sample_loss(tiny_task(loss=my_loss))
    with pytest.raises(TaskError, check=telling("Own", field="task.sample_loss")):
        sample_loss(tiny_task(loss=Own()))


@pytest.mark.parametrize(
    "value",
    [torch.tensor(1.0), torch.zeros(6), torch.zeros(3, 1), 0.5, (torch.zeros(3), torch.zeros(2))],
    ids=["scalar", "other", "column", "float", "weights"],
)
def test_sample_losses_of_another_shape_are_refused(value: object) -> None:
    with pytest.raises(TaskError, check=telling(field="task.sample_loss")):
        sample_losses(lambda _output, _target: value, SCORES, CLASSES, 3)


def test_a_weight_below_0_is_refused() -> None:
    with pytest.raises(TaskError, check=telling("1.0", "0", field="task.sample_loss")):
        sample_losses(lambda _output, _target: (torch.ones(3), -torch.ones(3)), SCORES, CLASSES, 3)


def test_a_loss_that_ignores_its_reduction_is_refused_and_not_guessed_at() -> None:
    def deaf(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        del reduction
        return cross_entropy(output, target)

    with pytest.raises(TaskError, check=telling(field="task.sample_loss", value=())):
        sample_losses(sample_loss(tiny_task(loss=deaf)), SCORES, CLASSES, 3)


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(1), 0.5])
def test_a_batch_loss_that_is_no_scalar_tensor_is_refused(value: object) -> None:
    with pytest.raises(TaskError, check=telling(field="task.loss")):
        batch_loss(lambda _output, _target: value, SCORES, CLASSES)


def test_the_loss_lies_where_the_outputs_lie() -> None:
    assert batch_loss(mse_loss, torch.zeros(2, device="meta"), torch.zeros(2, device="meta")).device.type == "meta"
    assert batch_loss(mse_loss, torch.zeros(2), torch.zeros(2)).device.type == "cpu"


def test_outputs_and_targets_on_two_devices_are_told_once_and_nothing_is_moved(
    telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    asked: list[str] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        asked.append("a loss of mixed devices")
        return mse_loss(output, target)

    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    with pytest.raises(LossDeviceMismatch, check=telling(outputs="cpu", targets="meta")):
        batch_loss(loss, here, there)
    with pytest.raises(LossDeviceMismatch, check=telling(outputs="meta", targets="cpu")):
        sample_losses(loss, {"scores": there}, (here, here), 2)
    assert asked == []
    assert told() == ["loss_device_mismatch"] * 2
    assert telemetry.counters.total("esper.severe_events") == 2


class Scores(NamedTuple):
    scores: Tensor


@dataclass(frozen=True)
class Record:
    scores: Tensor


@pytest.mark.parametrize("nest", [Scores, Record, lambda x: MappingProxyType({"scores": x}), lambda x: [(x,)]])
def test_a_device_is_seen_in_whatever_classes_outputs_are_nested(nest: Callable[[Tensor], Any]) -> None:
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    for output, target in ((nest(here), there), (here, nest(there)), (nest(there), nest(here))):
        with pytest.raises(LossDeviceMismatch):
            batch_loss(lambda _output, _target: here.sum(), output, target)
    assert batch_loss(lambda _output, _target: here.sum(), nest(here), nest(here)) == 0


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_loss_that_is_no_mean_is_refused_because_its_samples_would_be_judged_by_another(reduction: str) -> None:
    with pytest.raises(TaskError, check=telling("'mean'", field="task.loss")):
        sample_loss(tiny_task(loss=nn.MSELoss(reduction=reduction)))
