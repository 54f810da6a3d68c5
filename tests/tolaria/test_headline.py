"""The figures of a shard are what they are called: the task's own loss over all its samples, each metric over all."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import live_trainer, make_survey

from esper.errors import TaskError
from esper.testing import Bands, telling, tiny_task
from esper.tolaria.loss import sample_loss
from esper.tolaria.measuring import means_over
from esper.tolaria.task_metrics import Seen
from esper.tolaria.trainer import Trainer

F = nn.functional
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


@pytest.mark.parametrize(
    "task",
    [
        *({"loss": loss} for loss in LOSSES.values()),
        {"loss": partial(F.nll_loss, weight=CLASS_WEIGHTS), "model": Normalised},
        {"loss": lambda output, target: F.cross_entropy(output, target), "sample_loss": own_pair},
    ],
    ids=[*LOSSES, "negative log likelihood", "the task's own weights"],
)
def test_the_loss_of_a_shard_is_the_tasks_own_over_all_its_samples(task: dict[str, Any]) -> None:
    task = sentences(**task)
    trainer = live_trainer(make_survey(**task))
    trainer.train_to(10)
    expected = task["loss"](*whole(trainer, task["test"])).item()
    assert trainer.shard_means("test")["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_is_judged_is_the_loss_of_the_slice_sample_by_sample() -> None:
    survey = make_survey(**sentences(loss=LOSSES["class weights"]))
    trainer = live_trainer(survey)
    shares = torch.tensor(trainer.sample_losses("gate", 3).losses, dtype=torch.float64)
    ((inputs, targets),) = survey.data.batches_of(survey.data.slice("gate", 3))
    with torch.no_grad():
        expected = LOSSES["class weights"](trainer.host.eval()(inputs), targets).item()
    assert shares.mean().item() == pytest.approx(expected, rel=1e-5)
    assert (shares == 0).sum() >= 256 // (LENGTH + 1)  # those without a token


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"loss": partial(F.cross_entropy, reduction="sum")},
            r"task\.loss = 'task\.loss gives [\d.]+ where the mean of its sample losses is [\d.]+, on batch 1 of .*'",
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
            r"task\.sample_loss = 'task\.loss gives [\d.]+ where .* is [\d.]+, on .*': both must measure the same",
        ),
    ],
    ids=["a sum", "no loss per sample", "other losses per sample"],
)
def test_a_loss_that_is_no_mean_of_its_samples_is_refused_with_both_numbers(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        make_survey(**changes)


class Changed(Bands):
    """Three classes; the samples at some places have another target."""

    def __init__(self, count: int, key: int, places: range, target: int) -> None:
        super().__init__(count, key)
        self.places, self.other = places, torch.tensor(target)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x, self.other if index in self.places else y % 3


HEAVY = torch.tensor([1.0, 1.0, 1.0, 500.0])


def halved(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """A loss with weights that its `reduction="none"` does not show."""
    losses = F.cross_entropy(output, target, reduction="none")
    return losses if reduction == "none" else (losses * HEAVY[target]).sum() / HEAVY[target].sum()


OWN = partial(F.cross_entropy, reduction="none")
OTHER_NUMBER = {
    "a class weight": (3, {"loss": partial(F.cross_entropy, weight=HEAVY), "sample_loss": OWN}),
    "derived from a torch loss": (3, {"loss": halved}),
    "ignored targets": (-100, {"loss": F.cross_entropy, "sample_loss": OWN}),
}


def evaluated(change: Callable[[Tensor], Tensor], *sizes: int) -> list[Seen]:
    """Batches of a test shard with outputs of four classes, at random."""
    draw = torch.Generator().manual_seed(1)
    outputs = [torch.randn(size, 4, generator=draw) for size in sizes]
    targets = [change(torch.randint(0, 4, (size,), generator=draw)) for size in sizes]
    pairs = enumerate(zip(outputs, targets, strict=True), 1)
    return [Seen(f"batch {place} of task.test", len(target), output, target) for place, (output, target) in pairs]


def three_classes(shard: str, places: range, target: int) -> dict[str, Any]:
    """Shards of a task; in 700 samples of one of them, which are three batches, some targets are changed."""
    shards = {name: Changed(count, key, range(0), 0) for key, (name, count) in enumerate(SHARDS.items())}
    return {**shards, shard: Changed(700, 9, places, target), "epochs": 40}


@pytest.mark.parametrize("name", OTHER_NUMBER)
def test_a_batch_in_the_middle_whose_loss_is_another_number_is_named(name: str) -> None:
    rare, measures = OTHER_NUMBER[name]
    task = tiny_task(**measures)
    batches = evaluated(lambda target: torch.where(target == 3, 0, target), 256, 256, 188)
    batches[1].target[44] = rare
    with pytest.raises(TaskError, check=telling("2", "task.test", "sample_loss")):
        means_over(batches, task, sample_loss(task))


def test_a_slice_is_compared_before_a_candidate_is_judged_by_it() -> None:
    survey = make_survey(**three_classes("gate", range(300, 301), 3), **OTHER_NUMBER["a class weight"][1])
    slices = {fence: survey.data.slice("gate", fence).indices for fence in range(1, 20)}
    fence = next(fence for fence, indices in slices.items() if 300 in indices)
    with pytest.raises(TaskError, check=telling(f"fence {fence}", "1", "task.gate", field="task.sample_loss")):
        live_trainer(survey).sample_losses("gate", fence)


def test_a_large_part_in_the_middle_is_seen_before_the_run() -> None:
    with pytest.raises(TaskError, check=telling("256", "task.valid", field="task.sample_loss")):
        make_survey(**three_classes("valid", range(256, 400), 3), **OTHER_NUMBER["a class weight"][1])


def test_losses_of_both_signs_may_cancel() -> None:
    def centred(output: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(output, target, reduction="none")
        return losses - losses.detach().mean() + 1e-9

    task = {"loss": lambda output, target: centred(output, target).mean(), "sample_loss": centred}
    trainer = live_trainer(make_survey(**task))
    assert abs(trainer.shard_means("test")["loss"]) < 1e-6


# -- metrics -----------------------------------------------------------------------------------------------------


def hits(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


def precision(output: Tensor, target: Tensor) -> Tensor:
    """Of what is called class 3: no mean over samples."""
    called = output.argmax(1) == 3
    return (called & (target == 3)).sum() / called.sum().clamp(min=1)


def test_a_metric_is_a_mean_of_its_values_or_one_value_of_the_whole_shard() -> None:
    metrics = {
        "by_sample": hits,
        "by_batch": lambda output, target: hits(output, target).mean(),
        "precision": precision,
        "a_float": lambda output, target: precision(output, target).item(),
        "numpy": lambda output, target: np.float64(precision(output, target).item()),
        "an_array": lambda output, target: hits(output, target).numpy(),
    }
    test = Bands(TEST, key=3)
    trainer = live_trainer(make_survey(test=test, metrics=metrics))
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
        (lambda _output, _target: "good", "str on "),
        (by_class, r"[\d.]+ on 2 batches at once, [\d.]+ "),
        (
            lambda output, target: hits(output["logits"], target),
            "batch of step 0",
        ),
    ],
    ids=["text", "values of classes", "raises"],
)
def test_a_metric_that_is_neither_is_refused(metric: Any, said: str) -> None:
    with pytest.raises(TaskError, check=telling(field="task.metrics['own']", value=re.compile(said))):
        make_survey(test=Bands(TEST, key=3), metrics={"own": metric})


def padded(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sequences of the length of the longest: batches differ in it."""
    x, y = zip(*samples, strict=True)
    return nn.utils.rnn.pad_sequence(list(x), batch_first=True), torch.stack(y)


def one_then_several(output: Tensor, target: Tensor) -> Tensor:
    """A single value on the first batch of 256 and several on what is more."""
    found = hits(output, target)
    return found.mean() if len(found) <= 256 else found


def several_then_one(output: Tensor, target: Tensor) -> Tensor:
    found = hits(output, target)
    return found if len(found) == 256 else found.mean()


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda o, t: hits(o, t) * 1j, "Tensor of torch.complex64 and shape (256,) on batch 1 of task.test"),
        (lambda _o, _t: np.complex128(1j), "complex128 on batch 1 of task.test"),
        (lambda o, t: hits(o, t).to_sparse(), "Tensor of torch.float32 and shape (256,) on batch 1 of task.test"),
        (lambda _o, _t: np.ma.masked_array([1.0, 2.0], [0, 1]), "MaskedArray of float64 and shape (2,) on batch 1"),
        (lambda _o, _t: 10**400, "int beyond 1.8e+308 on batch 1 of task.test"),
        (lambda _o, _t: np.array(["a"]), "ndarray of <U1 and shape (1,) on batch 1 of task.test"),
        (lambda o, t: {"a": hits(o, t)}, "make a metric of each of its entries"),
        (lambda o, t: hits(o, t)[:0], "no value on any batch"),
        (one_then_several, "300 values on 2 batches at once, a single one on batch 1 of task.test"),
        (several_then_one, "a single value on batch 2 of task.test, 256 on the first batch"),
    ],
)
def test_a_metric_without_a_figure_is_refused_with_the_batch(metric: Any, said: str) -> None:
    task = tiny_task(metrics={"own": metric})
    with pytest.raises(TaskError, check=telling(said, field="task.metrics['own']")) as caught, torch.no_grad():
        means_over(evaluated(lambda target: target, 256, 44), task, sample_loss(task))
    assert "\n" not in str(caught.value)


def writing(output: Tensor, target: Tensor) -> Tensor:
    """It writes into all that it gets, through numpy too, which torch does not notice."""
    found = hits(output, target)
    output.zero_()
    target.numpy()[:] = 0
    return found


def test_what_a_metric_writes_and_draws_reaches_no_other_figure() -> None:
    def drawing(output: Tensor, _target: Tensor) -> Tensor:
        return torch.rand(len(output))

    def trained(metrics: dict[str, Any]) -> tuple[dict[str, float], str]:
        trainer = live_trainer(make_survey(test=Bands(TEST, key=3), metrics=metrics))
        trainer.train_to(10)
        means = trainer.shard_means("test")
        trainer.train_to(20)
        return means, trainer.weights_sha256()

    plain, weights = trained({"z": hits, "whole": precision, "drawn": drawing})
    found, weights_with = trained(
        {"a": writing, "b": drawing, "z": hits, "whole": precision, "drawn": drawing, "c": writing}
    )
    assert found["a"] == found["c"] == found["z"]
    assert {name: found[name] for name in plain} == plain
    assert weights_with == weights


def test_any_real_type_of_a_figure_counts_in_double_precision() -> None:
    metrics = {
        "bool": lambda output, target: output.argmax(1) == target,
        "int": lambda output, target: (output.argmax(1) == target).long() * 16_777_217,
        "half": lambda output, target: hits(output, target).mean().bfloat16().new_tensor(0.5),
        "some": lambda output, target: hits(output, target)[target == 3],
        "fraction": lambda _output, _target: Fraction(1, 4),
        "large": lambda _output, _target: 10**300,
        "not a number": lambda output, _target: output.sum() * float("nan"),
        "with gradient": lambda output, _target: torch.ones(len(output), requires_grad=True),
    }
    task, batches = tiny_task(metrics=metrics), evaluated(lambda target: target, 256, 44)
    means = means_over(batches, task, sample_loss(task))
    target = torch.cat([seen.target for seen in batches])
    share = hits(torch.cat([seen.output for seen in batches]), target).double()
    assert means["bool"] == share.mean()
    assert means["int"] == (share * 16_777_217).mean()
    assert means["some"] == share[target == 3].mean()
    assert (means["half"], means["fraction"], means["large"], means["with gradient"]) == (0.5, 0.25, 1e300, 1.0)
    assert np.isnan(means["not a number"])


def test_a_metric_of_a_whole_shard_needs_batches_that_can_be_joined() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    def lengths(count: int, longest: int) -> list[tuple[Tensor, Tensor]]:
        return [(torch.randn(longest - (n >= 256), 3), torch.zeros(())) for n in range(count)]

    shards = {name: lengths(count, 4) for name, count in SHARDS.items()}
    with pytest.raises(TaskError, check=telling(field="task.metrics['top']", value="one value for a batch")):
        make_survey(
            model=Steps,
            **shards,
            collate=padded,
            loss=lambda output, _target: output.square().mean(),
            sample_loss=lambda output, _target: output.square().flatten(1).mean(1),
            metrics={"top": lambda output, _target: output.max()},
            epochs=40,
        )
