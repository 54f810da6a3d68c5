"""Networks that mix the samples of a batch in evaluation are found, with the module; no others are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.ground.random_streams import streams
from esper.setup.mixing import Mixing, Rows, find_mixing
from esper.setup.survey import Survey, survey_of
from esper.testing import TinyHost, tiny_config, tiny_task
from esper.tolaria.trainer import never


class With(TinyHost):
    """The tiny host with a module between body and head, and a change of its input."""

    def __init__(self, extra: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.extra, self.change = extra, change

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extra(self.body(self.change(x))))


class Attention(nn.Module):
    """Each sample of [B, C] attends to all samples."""

    def forward(self, x: Tensor) -> Tensor:
        one = x[None, None]
        return functional.scaled_dot_product_attention(one, one, one)[0, 0]


class Pairs(nn.Module):
    """Subtracts from each sample of [B, C] the mean of a pair of neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.view(-1, 2, x.shape[1])
        return (pairs - pairs.mean(1, keepdim=True)).view_as(x)


class AlwaysTraining(nn.BatchNorm1d):
    """A batch norm that evaluation mode does not reach."""

    def train(self, mode: bool = True) -> AlwaysTraining:
        del mode
        return super().train(True)


class Outer(nn.Sequential):
    """A module around the one that mixes."""


class TimeFirst(nn.Module):
    """[B, C] -> [T, B, C] with as many steps as samples, through a layer that takes time first, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.linspace(0, 1, len(x))
        return self.layer(x * steps[:, None, None])[-1]


class Experts(nn.Module):
    """Each sample goes to one of four networks: which samples share a product depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.choice(x).argmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            where = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, where, expert(x[where]))
        return out


class Zero(nn.Linear):
    """Begins at zero."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        nn.init.zeros_(self.weight)


def same(x: Tensor) -> Tensor:
    return x


def rounded(x: Tensor) -> Tensor:
    """x, but for a rounding that depends on all samples."""
    total = x.sum(0)
    return x + total - total


class InBfloat16(nn.Linear):
    """A layer in lower precision, with a change of what it returns."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(8, 8, dtype=torch.bfloat16)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x.bfloat16())).float()


def rounded_otherwise(x: Tensor) -> Tensor:
    """x, where entries are larger by a rounding if a digit of the sum over all samples is odd."""
    return torch.where((16 * x.float().sum(0)).floor() % 2 > 0, x * (1 + torch.finfo(x.dtype).eps), x)


MIXING: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], str]] = {
    "mean": (nn.Identity, lambda x: x - x.mean(0), "the model (With)"),
    "largest": (nn.Identity, lambda x: x / x.abs().max(), "the model (With)"),
    "neighbour": (nn.Identity, lambda x: x + x.roll(1, 0) / 10, "the model (With)"),
    "other half": (nn.Identity, lambda x: x + x.roll(16, 0) / 10, "the model (With)"),
    "softmax": (lambda: nn.Softmax(0), same, "extra (Softmax)"),
    "attention": (Attention, same, "extra (Attention)"),
    "pairs": (Pairs, same, "extra (Pairs)"),
    "no running statistics": (lambda: nn.BatchNorm1d(8, track_running_stats=False), same, "extra (BatchNorm1d)"),
    "training in evaluation": (lambda: Outer(nn.ReLU(), AlwaysTraining(8)), same, "extra.1 (AlwaysTraining)"),
    "mean in bfloat16": (lambda: InBfloat16(lambda x: x - x.mean(0)), same, "the model (With)"),
    "behind zeros": (lambda: nn.Sequential(Pairs(), Zero()), same, "extra.0 (Pairs)"),
}
APART: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "batch norm": (lambda: nn.BatchNorm1d(8), same),
    "layer norm and dropout": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Dropout()), same),
    "time first": (TimeFirst, same),
    "experts": (Experts, same),
    "rounding": (nn.Identity, rounded),
    "rounding in bfloat16": (lambda: InBfloat16(rounded_otherwise), same),
    "draws in evaluation": (nn.Identity, lambda x: x + torch.randn_like(x)),
    "zeros": (Zero, same),
}


@pytest.fixture(scope="module")
def survey() -> Survey:
    return survey_of(tiny_task(), tiny_config())


def looked_at(
    survey: Survey, model: Callable[[], nn.Module], batch: Any = None, *, loss_depends_on_batch: bool = False
) -> Mixing:
    """What is found for a model after two steps, on the first batch if no other is given."""
    task = replace(survey.task, model=model)
    survey = replace(survey, task=task, loss_depends_on_batch=loss_depends_on_batch)
    trainer = survey.trainer("", 0, "survey", never)
    trainer.train_to(2)
    given = survey.data.batch(0) if batch is None else batch
    before = streams()[2]
    found = find_mixing(survey, trainer, given)
    assert torch.equal(streams()[2], before)
    return found


@pytest.mark.parametrize("loss_depends_on_batch", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_a_module_that_mixes_samples_is_named(name: str, loss_depends_on_batch: bool, survey: Survey) -> None:
    """Where the loss itself depends on the batch, the outputs are looked at."""
    extra, change, module = MIXING[name]
    found = looked_at(survey, lambda: With(extra(), change), loss_depends_on_batch=loss_depends_on_batch)
    assert found == Mixing(True, module)


@pytest.mark.parametrize("name", APART)
def test_a_network_that_keeps_samples_apart_is_not_accused(name: str, survey: Survey) -> None:
    extra, change = APART[name]
    assert looked_at(survey, lambda: With(extra(), change)) == Mixing(False)


def test_what_cannot_be_found_out_is_not_claimed(survey: Survey) -> None:
    def of_known_size(x: Tensor) -> Tensor:
        if not torch.isin(x, known).all():
            raise ValueError("a value that no data set has")
        return x

    known = survey.data.shards["train"].samples.inputs
    unmoved = looked_at(survey, lambda: With(nn.Identity(), torch.zeros_like))  # no input moves it
    without = looked_at(survey, TinyHost, ([], torch.zeros(32)))
    failing = looked_at(survey, lambda: With(nn.Identity(), of_known_size))
    assert [found.mixes for found in (unmoved, without, failing)] == [None] * 3
    told = ("moved the outputs too little", "no input has a row", "does not take changed inputs: ")
    assert [words in (found.why or "") for found, words in zip((unmoved, without, failing), told, strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("kept", "changed", "told"),
    [(0.0, 1.0, False), (1e-6, 1.0, False), (1e-2, 1.0, True), (1e-2, 0.0, True), (0.0, 1e-7, None), (1e-7, 0.0, None)],
)
def test_a_movement_counts_beside_rounding_and_beside_that_of_the_changed_samples(
    kept: float, changed: float, told: bool | None
) -> None:
    before, after = (Rows(torch.tensor([x, y]).double(), 1.0) for x, y in ((1.0, 1.0), (1.0 + kept, 1.0 + changed)))
    assert before.verdict(after, torch.tensor([True, False]), torch.finfo(torch.float32).eps) is told
