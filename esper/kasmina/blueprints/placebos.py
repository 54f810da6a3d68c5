"""Placebos: seeds that train like candidates but cannot help. A tournament compares its best candidate with them.

A network with any extra module differs from its control after some steps. So a test that shows a difference is not
enough. The gains of placebos show how large a gain is without a useful seed. Each placebo fits slots of every kind, and
its output is 0 at first.

Suffixes as in `seed_modules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints.channels_first import ChannelsFirst
from esper.kasmina.blueprints.seed_modules import SquaredReLU, zeroed
from esper.leyline.slots import Kind, SlotSpec

PREFIX = "placebo:"
"""First part of the name of each placebo. No blueprint of a user has a name that begins with it."""
WIDTH = 4
"""Hidden channels over the channels of the slot."""


def mlp(spec: SlotSpec) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Return the layers of W2 relu(W1 norm(h))^2, which acts on the channels of each position. All are random."""
    channels = spec.channels
    hidden = WIDTH * channels
    if spec.kind is Kind.NCHW:
        wide, narrow = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        return nn.GroupNorm(1, channels), wide, SquaredReLU(), narrow
    return nn.LayerNorm(channels), nn.Linear(channels, hidden), SquaredReLU(), nn.Linear(hidden, channels)


class OtherRows(nn.Module):
    """An MLP of the activations of another sample of the batch: sample i gets those of sample i - 1.

    A batch of one sample has no other sample. Then the MLP gets zeros, so its output does not depend on the sample.
    """

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        *layers, last = mlp(spec)
        self.inner = nn.Sequential(*layers, zeroed(last))

    def forward(self, h: Tensor) -> Tensor:
        """Return a correction of the shape of `h`, [B, ...]."""
        other = h.roll(1, 0) if len(h) > 1 else torch.zeros_like(h)
        correction: Tensor = self.inner(other)
        return correction


class Constant(nn.Module):
    """An MLP of a fixed random vector. So its output does not depend on the input or on the position."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        _, *layers, last = mlp(spec)  # no norm: the vector is fixed, and one channel cannot be normalised
        self.inner = nn.Sequential(*layers, zeroed(last))
        self.register_buffer("vector", torch.randn(1, *spec.per_channel))

    def forward(self, h: Tensor) -> Tensor:
        """Return a correction of the shape of `h`, [B, ...]."""
        correction: Tensor = self.inner(self.vector)
        return correction.expand_as(h)


class Bias(nn.Module):
    """A constant for each channel, whatever the input is."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(spec.per_channel))

    def forward(self, h: Tensor) -> Tensor:
        """Return a correction of the shape of `h`, [B, ...]."""
        return self.bias.expand_as(h)


class Frozen(nn.Module):
    """A random MLP that does not train, times a number that does. The number is 0 at first."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        self.inner = nn.Sequential(*mlp(spec)).requires_grad_(False)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        """Return a correction of the shape of `h`, [B, ...]."""
        correction: Tensor = self.scale * self.inner(h)
        return correction


class FrozenLinear(nn.Module):
    """A random linear map of the channels that does not train, times a number that does. The number is 0 at first."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        channels = spec.channels
        layer = nn.Conv2d(channels, channels, 1) if spec.kind is Kind.NCHW else nn.Linear(channels, channels)
        self.inner = layer.requires_grad_(False)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        """Return a correction of the shape of `h`, [B, ...]."""
        correction: Tensor = self.scale * self.inner(h)
        return correction


class Noise(nn.Module):
    """Random numbers, times a number that trains. The number is 0 at first."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        del spec
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        """Return a correction of the shape of `h`, [B, ...]."""
        correction: Tensor = self.scale * torch.randn_like(h)
        return correction


class Dead(nn.Module):
    """Nothing: the output is 0 and stays 0."""

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__()
        del spec
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        """Return a correction of the shape of `h`, [B, ...]."""
        correction: Tensor = self.scale.detach() * h + 0.0 * self.scale
        return correction


PLACEBOS: Mapping[str, Callable[[SlotSpec], nn.Module]] = {"constant": Constant, "frozen_linear": FrozenLinear}
"""Kind of placebo -> its factory. A tournament takes the kinds in this order, and then again from the first.

The reasons for these two, and against the other useless seeds, are in docs/adr/0013-placebos.md.
"""

USELESS: Mapping[str, Callable[[SlotSpec], nn.Module]] = {
    **PLACEBOS,
    "frozen": Frozen,
    "other_rows": OtherRows,
    "bias": Bias,
    "noise": Noise,
    "dead": Dead,
}
"""Kind of useless seed -> its factory. The trial of the gates (`esper plan --null`) uses them as candidates."""


def useless_seed(kind: str, spec: SlotSpec) -> nn.Module:
    """Return a new useless seed of a kind. In a slot [B, C, T] it acts on the transposed activation."""
    if spec.kind is not Kind.NCT:
        return USELESS[kind](spec)
    channels_last = spec.model_copy(update={"kind": Kind.NTC, "shape": spec.shape[::-1]})
    return ChannelsFirst(USELESS[kind](channels_last))


def useless_name(kind: str, number: int) -> str:
    """Return the name of a useless seed of a kind. Seeds of different numbers have different weights."""
    return f"{PREFIX}{kind}:{number}"


def name_of(place: int) -> str:
    """Return the name of the placebo with a number in its tournament. Names differ, so their weights differ, too."""
    return useless_name(tuple(PLACEBOS)[place % len(PLACEBOS)], place)


def kind_of(name: str) -> str | None:
    """Return the kind of a placebo by its name. None: the name is not that of a placebo."""
    return name.split(":")[1] if name.startswith(PREFIX) else None
