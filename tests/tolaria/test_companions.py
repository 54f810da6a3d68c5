"""Whether the loss of a sample depends on the others of its batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.cli import plan_view
from esper.ground.random_streams import streams
from esper.setup.forecast import forecast
from esper.setup.survey import survey_of
from esper.testing import TinyHost, tiny_config, tiny_task
from esper.tolaria.companions import depends_on_batch
from esper.tolaria.task_metrics import Seen

GENERATOR = torch.Generator().manual_seed(0)
PAIR = (torch.randn(32, 8, generator=GENERATOR), torch.randn(32, 8, generator=GENERATOR))


def contrastive(output: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    left, right = output
    return functional.cross_entropy(left @ right.T / 0.2, torch.arange(len(left)), reduction="none")


def alone(output: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    return functional.mse_loss(*output, reduction="none").mean(1)


def noisy(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return alone(output, target) + torch.rand(len(target))


def of_32(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return alone(output, target).view(32)


def scaled(measure: Any) -> Any:
    """The measure, times the last part of the output."""
    return lambda output, target: measure(output[:2], target) * output[2].sum()


SCALE, VECTOR = torch.tensor(2.0), torch.tensor([2.0, 3.0])


@pytest.mark.parametrize(
    ("measure", "output", "found", "why"),
    [
        (contrastive, PAIR, True, None),
        (alone, PAIR, False, None),
        *((scaled(contrastive), (*PAIR, scale), True, None) for scale in (SCALE, SCALE.view(1), VECTOR)),
        *((scaled(alone), (*PAIR, scale), False, None) for scale in (SCALE, SCALE.view(1))),
        (scaled(alone), (*PAIR, VECTOR), None, "an output or target of shape (2,) has no row for each of 32 samples"),
        (noisy, PAIR, None, "the loss draws random numbers"),
        (of_32, PAIR, None, "the loss cannot be computed for half of a batch: RuntimeError"),
        (alone, (PAIR[0][:31], PAIR[1][:31]), None, "the loss cannot be computed for half of a batch: TaskError"),
    ],
)
def test_samples_that_depend_on_each_other_are_found(
    measure: Any, output: Any, found: bool | None, why: str | None
) -> None:
    before = streams()[2]
    depends, told = depends_on_batch(measure, Seen("batch", 32, output, torch.zeros(32)))
    assert depends is found
    assert told == why or (told or "").startswith(why or "-")
    assert torch.equal(streams()[2], before)


def beside_the_batch(output: Tensor, target: Tensor) -> Tensor:
    losses = functional.cross_entropy(output, target, reduction="none")
    return losses + (output - output.mean(0)).square().mean(1)


class NormedByBatch(TinyHost):
    """Its norm takes the statistics of the batch, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


def test_a_plan_says_that_samples_depend_on_each_other() -> None:
    task = tiny_task(
        model=NormedByBatch,
        sample_loss=beside_the_batch,
        loss=lambda output, target: beside_the_batch(output, target).mean(),
    )
    found = forecast(survey_of(task, tiny_config()))
    assert (found["loss_depends_on_batch"], found["network_mixes_samples"]) == (True, True)
    by_loss, by_network = plan_view.lines(found)[:2]
    assert "docs/figures.md" in by_loss
    assert by_network.startswith("norm (BatchNorm1d) mixes the samples of a batch, in evaluation too: ")
    assert all("means over evaluation batches of 256 samples" in said for said in (by_loss, by_network))
    plain = forecast(survey_of(tiny_task(), tiny_config()))
    assert (plain["loss_depends_on_batch"], plain["network_mixes_samples"], plain["mixed_by"]) == (False, False, None)
    assert not plan_view.companions(plain)
    unknown = {
        "loss_depends_on_batch": None,
        "loss_depends_on_batch_unknown": "it draws",
        "network_mixes_samples": None,
    }
    said = plan_view.companions(plain | unknown)
    assert ["could not be determined" in line for line in said] == [True, True]
    assert "it draws" in said[0]
