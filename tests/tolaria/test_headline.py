"""The figures of a shard are what they are called: the task's own loss over all its samples, each metric over all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from esper.errors import TaskError
from esper.prospect import Prospect
from esper.testing import Bands
from esper.tolaria.trainer import Trainer, never

F = nn.functional
MakeProspect = Callable[..., Prospect]
LENGTH, TEST = 5, 300
"""Tokens of a sample; samples of the test shard, which are evaluated in batches of 256 and of 44."""
CLASS_WEIGHTS = torch.tensor([0.1, 1.0, 5.0, 2.0])


class Tagger(nn.Module):
    """[B, 8] -> [B, 4, LENGTH]: scores of four classes for each of five tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 4 * LENGTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu()).unflatten(1, (4, LENGTH))


class Normalised(Tagger):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)


def live_trainer(prospect: Prospect) -> Trainer:
    return prospect.trainer("", 0, "tolaria", never)


def tagged(count: int, key: int) -> TensorDataset:
    """Sentences of 1 to 5 tokens, padded with -100; now and then there is none at all."""
    draw = torch.Generator().manual_seed(key)
    x, tags = torch.randn(count, 8, generator=draw), torch.randint(0, 4, (count, LENGTH), generator=draw)
    lengths = torch.arange(count) % (LENGTH + 1)
    tags[torch.arange(LENGTH) >= lengths[:, None]] = -100
    return TensorDataset(x, tags)


SHARDS = {"train": 256, "pick": 256, "gate": 256, "valid": 64, "test": TEST}


def sentences(**changes: Any) -> dict[str, Any]:
    shards = {name: tagged(count, key) for key, (name, count) in enumerate(SHARDS.items())}
    return {"model": Tagger, **shards, "epochs": 40} | changes


def whole(trainer: Trainer, samples: Any) -> tuple[Tensor, Tensor]:
    """The outputs and targets of all samples of a data set, at once."""
    x, y = zip(*(samples[n] for n in range(len(samples))), strict=True)
    with torch.no_grad():
        return trainer.host.eval()(torch.stack(x)), torch.stack(y)


def own_pair(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    losses, counts = F.cross_entropy(output, target, reduction="none").sum(1), (target != -100).sum(1)
    return losses / counts.clamp(min=1), counts


LOSSES = {
    "ignore_index": F.cross_entropy,
    "class weights": partial(F.cross_entropy, weight=CLASS_WEIGHTS),
    "a module": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2),
    "another index": nn.CrossEntropyLoss(ignore_index=-100, weight=CLASS_WEIGHTS),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_loss_of_a_shard_is_the_tasks_own_over_all_its_samples(make_prospect: MakeProspect, loss: Any) -> None:
    task = sentences(loss=loss)
    trainer = live_trainer(make_prospect(**task))
    trainer.train_to(10)
    assert trainer.shard_means("test")["loss"] == pytest.approx(loss(*whole(trainer, task["test"])).item(), rel=1e-5)


def test_the_negative_log_likelihood_weighs_like_cross_entropy(make_prospect: MakeProspect) -> None:
    loss = partial(F.nll_loss, weight=CLASS_WEIGHTS)
    task = sentences(loss=loss, model=Normalised)
    trainer = live_trainer(make_prospect(**task))
    assert trainer.shard_means("test")["loss"] == pytest.approx(loss(*whole(trainer, task["test"])).item(), rel=1e-5)


def test_a_task_may_say_the_weights_of_its_samples(make_prospect: MakeProspect) -> None:
    task = sentences(loss=lambda output, target: F.cross_entropy(output, target), sample_loss=own_pair)
    trainer = live_trainer(make_prospect(**task))
    expected = F.cross_entropy(*whole(trainer, task["test"])).item()
    assert trainer.shard_means("test")["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_is_judged_is_the_loss_of_the_slice_sample_by_sample(make_prospect: MakeProspect) -> None:
    prospect = make_prospect(**sentences(loss=LOSSES["class weights"]))
    trainer = live_trainer(prospect)
    shares = torch.tensor(trainer.sample_losses("gate", 3).losses, dtype=torch.float64)
    ((inputs, targets),) = prospect.data.batches_of(prospect.data.slice("gate", 3))
    with torch.no_grad():
        expected = LOSSES["class weights"](trainer.host.eval()(inputs), targets).item()
    assert shares.mean().item() == pytest.approx(expected, rel=1e-5)
    assert (shares == 0).sum() >= 256 // (LENGTH + 1)  # those without a token


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"loss": partial(F.cross_entropy, reduction="sum")},
            r"task\.loss = 'task\.loss gives [\d.]+ where the mean of its sample losses is [\d.]+': it must be a mean",
        ),
        (
            {"loss": partial(F.cross_entropy, weight=CLASS_WEIGHTS), "sample_loss": F.cross_entropy},
            r"task\.sample_loss = .*one loss per sample",
        ),
        (
            {
                "loss": partial(F.cross_entropy, weight=CLASS_WEIGHTS),
                "sample_loss": partial(F.cross_entropy, reduction="none"),
            },
            r"task\.sample_loss = 'task\.loss gives [\d.]+ where .* is [\d.]+': both must measure the same",
        ),
    ],
    ids=["a sum", "no loss per sample", "other losses per sample"],
)
def test_a_loss_that_is_no_mean_of_its_samples_is_refused_with_both_numbers(
    make_prospect: MakeProspect, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(TaskError, match=said):
        make_prospect(**changes)


# -- metrics -----------------------------------------------------------------------------------------------------


def hits(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


def precision(output: Tensor, target: Tensor) -> Tensor:
    """Of what is called class 3: no mean over samples."""
    called = output.argmax(1) == 3
    return (called & (target == 3)).sum() / called.sum().clamp(min=1)


def test_a_metric_is_a_mean_of_its_values_or_one_value_of_the_whole_shard(make_prospect: MakeProspect) -> None:
    metrics = {
        "by_sample": hits,
        "by_batch": lambda output, target: hits(output, target).mean(),
        "precision": precision,
        "a_float": lambda output, target: precision(output, target).item(),
        "numpy": lambda output, target: np.float64(precision(output, target).item()),
        "an_array": lambda output, target: hits(output, target).numpy(),
    }
    test = Bands(TEST, key=3)
    trainer = live_trainer(make_prospect(test=test, metrics=metrics))
    trainer.train_to(60)
    means = trainer.shard_means("test")

    output, target = whole(trainer, test)
    by_parts = (256 * precision(output[:256], target[:256]) + 44 * precision(output[256:], target[256:])) / TEST
    assert means["precision"] == means["a_float"] == means["numpy"] == precision(output, target).item()
    assert means["precision"] != pytest.approx(by_parts.item(), abs=1e-3)  # else this test could not fail
    assert means["by_sample"] == means["an_array"] == pytest.approx(hits(output, target).mean().item(), abs=1e-6)
    assert means["by_batch"] == pytest.approx(means["by_sample"], abs=1e-6)


def by_class(output: Tensor, target: Tensor) -> Tensor:
    return torch.stack([hits(output, target)[target == k].mean() for k in range(4)])


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda _output, _target: "good", r"'str': a metric must return a number or a tensor"),
        (by_class, r"on two batches at once, [\d.]+ by the mean of its values on each': return one value per sample"),
        (lambda output, target: hits(output["logits"], target), r"'the metric': it raised .*test_headline\.py, line"),
    ],
    ids=["text", "values of classes", "raises"],
)
def test_a_metric_that_is_neither_is_refused(make_prospect: MakeProspect, metric: Any, said: str) -> None:
    with pytest.raises(TaskError, match=rf"task\.metrics\['own'\] = .*{said}"):
        make_prospect(test=Bands(TEST, key=3), metrics={"own": metric})


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sequences of the length of the longest: batches differ in it."""
    x, y = zip(*samples, strict=True)
    return nn.utils.rnn.pad_sequence(list(x), batch_first=True), torch.stack(y)


def test_a_metric_of_a_whole_shard_needs_batches_that_can_be_joined(make_prospect: MakeProspect) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    def lengths(count: int, longest: int) -> list[tuple[Tensor, Tensor]]:
        return [(torch.randn(longest - (n >= 256), 3), torch.zeros(())) for n in range(count)]

    shards = {name: lengths(count, 4) for name, count in SHARDS.items()}
    with pytest.raises(TaskError, match=r"metrics\['top'\] = 'one value for a batch': .*cannot be joined.*per sample"):
        make_prospect(
            model=Steps,
            **shards,
            collate=padded,
            loss=lambda output, _target: output.square().mean(),
            sample_loss=lambda output, _target: output.square().flatten(1).mean(1),
            metrics={"top": lambda output, _target: output.max()},
            epochs=40,
        )
