"""The hosts of the benchmark `growth`.

The defaults of growth were chosen on the hosts in `TUNED`. The hosts in `FRESH` were written after the defaults were
fixed for the first time. Their results led to other limits of a tournament's cost, so they are no fresh hosts any more.
The hosts in `_growth_hosts_later.py` were written after that.

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
    also_plain: tuple[Factory, ...] = ()
    """As `plain`, of another family, such as deeper ones."""
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


# -- the kinds that were named before the defaults were fixed ------------------------------------------------------


class Autoencoder(nn.Module):
    """Noisy images [B, 1, 8, 8] -> images [B, 1, 8, 8]: a convolutional autoencoder."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU())
        self.code = nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU())
        self.decoder = nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.ReLU())
        self.last = nn.ConvTranspose2d(channels, 1, 2, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        images: Tensor = self.last(self.decoder(self.code(self.encoder(x_BCHW))))
        return images


def autoencoder() -> Task:
    """Handwritten digits with noise; the target is the digit without noise. The loss is the mean squared error."""
    shards, generator = digits.split(*digits.load_images()), torch.Generator().manual_seed(4)
    copies = {"train": 6, "valid": 2, "test": 2, "pick": 2, "gate": 2}
    return Task(
        model=Autoencoder,
        slots=["encoder", "code", "decoder"],
        **{name: _noisy(shards[name], count, generator) for name, count in copies.items()},
        loss=nn.functional.mse_loss,
        sample_loss=_squared_errors,
        optimizer=_adam(3e-3),
        batch_size=32,
        epochs=4,
    )


def _noisy(shard: TensorDataset, copies: int, generator: torch.Generator) -> TensorDataset:
    images_BCHW = shard.tensors[0].repeat(copies, 1, 1, 1)
    return TensorDataset(images_BCHW + 0.4 * torch.randn(images_BCHW.shape, generator=generator), images_BCHW)


def _squared_errors(found: Tensor, target: Tensor) -> Tensor:
    return (found - target).square().flatten(1).mean(dim=1)


class PointSet(nn.Module):
    """Sets of points [B, 32, 2] -> [B, 5]: the same layers for each point, their maximum over the points, a head."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.whole = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.head = nn.Linear(channels, 5)

    def forward(self, points_BTC: Tensor) -> Tensor:
        scores: Tensor = self.head(self.whole(self.each(points_BTC).amax(dim=1)))
        return scores


def points() -> Task:
    """32 noisy points on an outline with some corners (2 to 6), of any size and direction; the class is the number."""
    generator = torch.Generator().manual_seed(5)
    count = sum(SIZES.values())
    corners_N = torch.randint(2, 7, (count,), generator=generator)
    place_NT = torch.rand(count, 32, generator=generator) * corners_N[:, None]
    turn_N = 6.2832 * torch.rand(count, generator=generator)

    def corner(number_NT: Tensor) -> Tensor:
        angle_NT = turn_N[:, None] + 6.2832 * number_NT / corners_N[:, None]
        return torch.stack([angle_NT.cos(), angle_NT.sin()], dim=-1)

    before_NT, share_NT1 = place_NT.floor(), place_NT.frac()[..., None]
    outline_NTC = (1 - share_NT1) * corner(before_NT) + share_NT1 * corner(before_NT + 1)
    size_N = 0.6 + 0.8 * torch.rand(count, generator=generator)
    points_NTC = size_N[:, None, None] * outline_NTC + 0.05 * torch.randn(count, 32, 2, generator=generator)
    parts = zip(SIZES, points_NTC.split(list(SIZES.values())), (corners_N - 2).split(list(SIZES.values())), strict=True)
    return Task(
        model=PointSet,
        slots=["each", "whole"],
        **{name: TensorDataset(x, y) for name, x, y in parts},
        loss=cross_entropy,
        optimizer=_adam(3e-3),
        batch_size=64,
        epochs=7,
    )


class Mixer(nn.Module):
    """Images [B, 1, 8, 8] -> [B, 10]: patches of 2 x 2, mixed over patches and then over channels."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, channels, 2, stride=2)
        self.over_patches = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.over_channels = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BTC = self.patches(x_BCHW).flatten(2).transpose(1, 2)
        h_BTC = h_BTC + self.over_patches(h_BTC.transpose(1, 2)).transpose(1, 2)
        h_BTC = h_BTC + self.over_channels(h_BTC)
        scores: Tensor = self.head(self.norm(h_BTC).mean(dim=1))
        return scores


def mixer() -> Task:
    """Handwritten digits with noise, three copies of each."""
    shards, generator = digits.split(*digits.load_images()), torch.Generator().manual_seed(6)

    def noisy(name: str) -> TensorDataset:
        images_BCHW, classes_B = shards[name].tensors
        noise = 0.3 * torch.randn((3 * len(images_BCHW), *images_BCHW.shape[1:]), generator=generator)
        return TensorDataset(images_BCHW.repeat(3, 1, 1, 1) + noise, classes_B.repeat(3))

    return Task(
        model=Mixer,
        slots=["over_channels", "norm"],
        **{name: noisy(name) for name in SIZES},
        loss=cross_entropy,
        optimizer=_adam(3e-3),
        batch_size=16,
        epochs=4,
    )


class ResidualMLP(nn.Module):
    """[B, 10] -> [B]: an MLP with two residual blocks."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.inward = nn.Linear(10, channels)
        self.first, self.second = (
            nn.Sequential(
                nn.LayerNorm(channels), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
            )
            for _ in range(2)
        )
        self.head = nn.Linear(channels, 1)

    def forward(self, x_BC: Tensor) -> Tensor:
        h_BC = self.inward(x_BC)
        h_BC = h_BC + self.first(h_BC)
        h_BC = h_BC + self.second(h_BC)
        values: Tensor = self.head(h_BC)[:, 0]
        return values


def regression() -> Task:
    """Rows of uniform numbers; the target is Friedman's first function with noise. The loss is the mean squared error.

    Source: Friedman 1991, doi:10.1214/aos/1176347963, sec. 4.3.
    """
    generator = torch.Generator().manual_seed(8)
    x_NC = torch.rand(sum(SIZES.values()), 10, generator=generator)
    y_N = 10 * (3.14159 * x_NC[:, 0] * x_NC[:, 1]).sin() + 20 * (x_NC[:, 2] - 0.5).square()
    y_N = (y_N + 10 * x_NC[:, 3] + 5 * x_NC[:, 4] + torch.randn(len(x_NC), generator=generator) - 14.4) / 4.9
    parts = zip(SIZES, x_NC.split(list(SIZES.values())), y_N.split(list(SIZES.values())), strict=True)
    return Task(
        model=ResidualMLP,
        slots=["first", "second"],
        **{name: TensorDataset(x, y) for name, x, y in parts},
        loss=nn.functional.mse_loss,
        sample_loss=lambda found_B, target_B: (found_B - target_B).square(),
        optimizer=_adam(3e-3),
        batch_size=32,
        epochs=4,
    )


TUNED: dict[str, Case] = {
    "text": Case(
        stdlib_text.task,
        plain=tuple(partial(stdlib_text.CharTransformer, n, 1) for n in (48, 64, 80, 96, 112, 128)),
        also_plain=tuple(partial(stdlib_text.CharTransformer, 32, n) for n in (2, 3, 4, 5, 6, 8, 10, 12)),
    ),
    "digits": Case(digits.task, tuple(partial(digits.DigitReader, n) for n in (6, 8, 12, 16, 24, 32, 48))),
    "table": Case(table, tuple(partial(TableHost, n) for n in (16, 24, 32, 48, 64, 96, 128))),
    "images": Case(images, tuple(partial(ImageHost, n) for n in (8, 12, 16, 24, 32, 48))),
    "sequences": Case(sequences, tuple(partial(SequenceHost, n) for n in (32, 48, 64, 96))),
    "recurrent": Case(recurrent, tuple(partial(RecurrentHost, n) for n in (48, 64, 96, 128))),
}

FRESH: dict[str, Case] = {
    "autoencoder": Case(autoencoder, tuple(partial(Autoencoder, n) for n in (8, 12, 16, 24, 32, 48))),
    "points": Case(points, tuple(partial(PointSet, n) for n in (16, 24, 32, 48, 64))),
    "mixer": Case(mixer, tuple(partial(Mixer, n) for n in (24, 32, 48, 64, 96, 128))),
    "regression": Case(regression, tuple(partial(ResidualMLP, n) for n in (24, 32, 48, 64, 96))),
}
