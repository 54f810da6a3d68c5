"""The hosts of the benchmark `growth`.

The defaults of growth were chosen on the hosts in `TUNED`. The kinds of the hosts in `FRESH` were named before, and the
hosts were written and measured after the defaults were fixed.

    B batch   T position   C channel   V symbol   H, W height and width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from esper import Task
from esper.tasks import digits, stdlib_text

Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """A task of the benchmark."""

    make: Callable[[], Task]
    plain: tuple[Factory, ...] = ()
    """Larger networks of the host's kind, smallest first, that somebody would try instead of growth."""
    settings: Mapping[str, object] = field(default_factory=dict)


def _adam(rate: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


# -- a table -----------------------------------------------------------------------------------------------------

COLUMNS, CLASSES = 20, 6
SIZES = {"train": 6000, "valid": 1000, "test": 2000, "pick": 1000, "gate": 1000}


class TableHost(nn.Module):
    """[B, 20] -> [B, 6]: an MLP with two narrow hidden layers."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(COLUMNS, width), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x_BC: Tensor) -> Tensor:
        scores: Tensor = self.head(self.second(self.first(x_BC).relu()).relu())
        return scores


def _teacher() -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    layers = nn.Sequential(nn.Linear(COLUMNS, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, CLASSES))
    for weight in layers.parameters():
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (1.5 / weight.shape[-1] ** 0.5))
    return layers


def table() -> Task:
    """Rows of normal numbers. A random MLP gives the classes; a tenth of them is replaced by random classes."""
    generator = torch.Generator().manual_seed(1)
    x_NC = torch.randn(sum(SIZES.values()), COLUMNS, generator=generator)
    with torch.no_grad():
        classes_N = _teacher()(x_NC).argmax(dim=1)
    noisy_N = torch.rand(len(x_NC), generator=generator) < 0.1
    classes_N[noisy_N] = torch.randint(CLASSES, (int(noisy_N.sum()),), generator=generator)
    parts = zip(SIZES, x_NC.split(list(SIZES.values())), classes_N.split(list(SIZES.values())), strict=True)
    return Task(
        model=TableHost,
        slots=["first", "second"],
        **{name: TensorDataset(x, y) for name, x, y in parts},
        loss=cross_entropy,
        optimizer=_adam(4e-3),
        batch_size=64,
        epochs=8,
    )


# -- images with batch norm --------------------------------------------------------------------------------------

CANVAS = 14


class ImageHost(nn.Module):
    """[B, 1, 14, 14] -> [B, 10]: two convolutions with batch norm and dropout."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first, self.second = self._stage(1, channels), self._stage(channels, 2 * channels)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(2 * channels, 10)

    @staticmethod
    def _stage(inner: int, outer: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        scores: Tensor = self.head(self.drop(self.second(self.first(x_BCHW)).amax(dim=(2, 3))))
        return scores


def images() -> Task:
    """Handwritten digits, each at a random place of a canvas with noise. No two shards share a digit."""
    shards, generator = digits.split(*digits.load_images()), torch.Generator().manual_seed(2)
    copies = {"train": 6, "valid": 3, "test": 3, "pick": 3, "gate": 2}
    return Task(
        model=ImageHost,
        slots=["first", "second"],
        **{name: _on_canvas(shards[name], count, generator) for name, count in copies.items()},
        loss=cross_entropy,
        optimizer=_adam(8e-3),
        batch_size=32,
        epochs=5,
    )


def _on_canvas(shard: TensorDataset, copies: int, generator: torch.Generator) -> TensorDataset:
    images_BCHW, classes_B = shard.tensors
    canvas = 0.25 * torch.randn(copies * len(classes_B), 1, CANVAS, CANVAS, generator=generator)
    for place, image in enumerate(images_BCHW.repeat(copies, 1, 1, 1)):
        top, left = torch.randint(CANVAS - 7, (2,), generator=generator).tolist()
        canvas[place, :, top : top + 8, left : left + 8] += image
    return TensorDataset(canvas, classes_B.repeat(copies))


# -- attention ---------------------------------------------------------------------------------------------------

SYMBOLS, LENGTH = 12, 16


class SequenceHost(nn.Module):
    """Symbols [B, 16] -> scores of each position [B, 16, 12]: one layer of attention without an MLP."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(SYMBOLS, channels), nn.Embedding(LENGTH, channels)
        self.inward, self.outward = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, SYMBOLS)

    def forward(self, symbols_BT: Tensor) -> Tensor:
        h_BTC = self.symbol(symbols_BT) + self.place.weight
        q, k, v = self.inward(h_BTC).chunk(3, dim=-1)
        h_BTC = h_BTC + self.outward(nn.functional.scaled_dot_product_attention(q, k, v))
        scores: Tensor = self.head(self.norm(h_BTC))
        return scores


def sequences() -> Task:
    """Sequences of symbols; the target at t is the sum of symbol t and the symbol to which it points, modulo 12.

    A twentieth of the targets is random.
    """
    generator = torch.Generator().manual_seed(3)
    symbols_NT = torch.randint(SYMBOLS, (sum(SIZES.values()), LENGTH), generator=generator)
    targets_NT = (symbols_NT + symbols_NT.gather(1, symbols_NT)) % SYMBOLS
    noisy_NT = torch.rand(symbols_NT.shape, generator=generator) < 0.05
    targets_NT[noisy_NT] = torch.randint(SYMBOLS, (int(noisy_NT.sum()),), generator=generator)
    parts = zip(SIZES, symbols_NT.split(list(SIZES.values())), targets_NT.split(list(SIZES.values())), strict=True)
    return Task(
        model=SequenceHost,
        slots=["symbol", "outward", "norm"],
        **{name: TensorDataset(x, y) for name, x, y in parts},
        loss=lambda scores_BTV, targets_BT: cross_entropy(scores_BTV.transpose(1, 2), targets_BT),
        sample_loss=stdlib_text.sample_loss,
        optimizer=_adam(4e-3),
        batch_size=32,
        epochs=4,
    )


# -- a recurrent network -----------------------------------------------------------------------------------------


class RecurrentHost(nn.Module):
    """Symbols [B, T] -> scores of the next symbol [B, T, V]: a GRU."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.embed, self.cell = (
            nn.Embedding(stdlib_text.VOCABULARY, channels),
            nn.GRU(channels, channels, batch_first=True),
        )
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, stdlib_text.VOCABULARY)

    def forward(self, symbols_BT: Tensor) -> Tensor:
        states_BTC, _ = self.cell(self.embed(symbols_BT))
        scores: Tensor = self.head(self.norm(states_BTC))
        return scores


def recurrent() -> Task:
    """The text of the default task, read by a recurrent network."""
    return replace(stdlib_text.task(), model=RecurrentHost, slots=["embed", "norm"])


TUNED: dict[str, Case] = {
    "text": Case(stdlib_text.task, tuple(partial(stdlib_text.CharTransformer, 32, n) for n in (2, 3, 4, 5, 6, 8))),
    "digits": Case(digits.task, tuple(partial(digits.DigitReader, n) for n in (6, 8, 12, 16, 24, 32, 48))),
    "table": Case(table, tuple(partial(TableHost, n) for n in (16, 24, 32, 48, 64, 96, 128))),
    "images": Case(images, tuple(partial(ImageHost, n) for n in (8, 12, 16, 24, 32, 48))),
    "sequences": Case(sequences, tuple(partial(SequenceHost, n) for n in (32, 48, 64, 96))),
    "recurrent": Case(recurrent, tuple(partial(RecurrentHost, n) for n in (48, 64, 96, 128))),
}

FRESH: dict[str, Case] = {}
