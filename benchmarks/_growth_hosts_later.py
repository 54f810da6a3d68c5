"""More hosts of the benchmark `growth`. They were written from the names of their kinds after the defaults were fixed.

B batch   N sample   T position, node or feature   S the same at the other end   C channel   H, W height and width
"""

from __future__ import annotations

from functools import partial
from math import tau
from typing import Any

import torch
from _growth_hosts import SIZES, Case
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, scaled_dot_product_attention
from torch.optim import Adam, AdamW
from torch.utils.data import TensorDataset, default_collate

from esper import Task

COUNT = sum(SIZES.values())


def _shards(*tensors: Tensor) -> dict[str, TensorDataset]:
    parts = (tensor.split(list(SIZES.values())) for tensor in tensors)
    return {name: TensorDataset(*shard) for name, *shard in zip(SIZES, *parts, strict=True)}


# -- a graph network ---------------------------------------------------------------------------------------------

NODES, HOPS = 14, 5


class Round(nn.Module):
    """Nodes [B, T, C] and links [B, T, T] -> [B, T, C]: each node adds up the messages of its neighbours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.own, self.message = nn.Linear(channels, channels), nn.Linear(channels, channels, bias=False)

    def forward(self, nodes_BTC: Tensor, links_BTS: Tensor) -> Tensor:
        return (self.own(nodes_BTC) + links_BTS @ self.message(nodes_BTC)).relu()


class GraphNetwork(nn.Module):
    """Nodes [B, 14, 2] and links [B, 14, 14] -> [B, 5]: three rounds of messages, and the mean over the nodes."""

    def __init__(self, channels: int = 20) -> None:
        super().__init__()
        self.embed = nn.Linear(2, channels)
        self.rounds = nn.ModuleList(Round(channels) for _ in range(3))
        self.whole = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.head = nn.Linear(channels, HOPS)

    def forward(self, nodes_BTC: Tensor, links_BTS: Tensor) -> Tensor:
        h_BTC = self.embed(nodes_BTC)
        for one in self.rounds:
            h_BTC = one(h_BTC, links_BTS)
        scores: Tensor = self.head(self.whole(h_BTC.mean(dim=1)))
        return scores


def graph() -> Task:
    """Connected random graphs with two marked nodes; the class is the number of links between these: 1 to 4, or more.

    A graph is a random tree with four more links, some of which it has already. A twentieth of the classes is random.
    """
    generator = torch.Generator().manual_seed(11)
    samples_N = torch.arange(COUNT)
    links_NTS = torch.zeros(COUNT, NODES, NODES)
    for node in range(1, NODES):
        links_NTS[samples_N, node, torch.randint(node, (COUNT,), generator=generator)] = 1
    for _ in range(4):
        ends_2N = torch.randint(NODES, (2, COUNT), generator=generator)
        links_NTS[samples_N, ends_2N[0], ends_2N[1]] = 1
    links_NTS = torch.maximum(links_NTS, links_NTS.transpose(1, 2)) * (1 - torch.eye(NODES))
    first_N = torch.randint(NODES, (COUNT,), generator=generator)
    second_N = (first_N + torch.randint(1, NODES, (COUNT,), generator=generator)) % NODES
    marks_NTC = nn.functional.one_hot(torch.stack([first_N, second_N], dim=1), NODES).transpose(1, 2).float()
    classes_N, reached_NT = torch.zeros(COUNT, dtype=torch.long), marks_NTC[:, :, 0]
    for _ in range(HOPS - 1):
        reached_NT = ((links_NTS @ reached_NT[:, :, None])[:, :, 0] + reached_NT).clamp(max=1)
        classes_N += reached_NT[samples_N, second_N] == 0
    noisy_N = torch.rand(COUNT, generator=generator) < 0.05
    classes_N[noisy_N] = torch.randint(HOPS, (int(noisy_N.sum()),), generator=generator)
    return Task(
        model=GraphNetwork,
        slots=["rounds.0", "rounds.1", "rounds.2", "whole"],
        **_shards(marks_NTC, links_NTS, classes_N),
        loss=cross_entropy,
        optimizer=partial(Adam, lr=3e-3),
        collate=_with_links,
        input_output=lambda model, inputs: model(*inputs),
        batch_size=64,
        epochs=7,
    )


def _with_links(samples: list[Any]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    nodes_BTC, links_BTS, classes_B = default_collate(samples)
    return (nodes_BTC, links_BTS), classes_B


# -- a forecast --------------------------------------------------------------------------------------------------

PAST, FUTURE = 48, 6


class Dilated(nn.Module):
    """[B, T, C] -> [B, T, C]: a residual block with a causal convolution over the positions."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.over_time = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.over_channels = nn.Linear(channels, channels)

    def forward(self, h_BTC: Tensor) -> Tensor:
        mixed_BTC = self.over_time(self.pad(h_BTC.transpose(1, 2))).transpose(1, 2)
        return h_BTC + self.over_channels(mixed_BTC.relu())


class Forecaster(nn.Module):
    """Series [B, 48] -> the next values [B, 6]: a temporal convolutional network."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.inward = nn.Linear(1, channels)
        self.blocks = nn.Sequential(*(Dilated(channels, dilation) for dilation in (1, 2, 4, 8)))
        self.head = nn.Linear(channels, FUTURE)

    def forward(self, values_BT: Tensor) -> Tensor:
        next_values: Tensor = self.head(self.blocks(self.inward(values_BT[:, :, None]))[:, -1])
        return next_values


def forecast() -> Task:
    """Noisy series with a trend and a season of 6 to 18 steps, which has two harmonics. The loss is the squared error.

    The targets have the noise too.
    """
    generator = torch.Generator().manual_seed(12)

    def drawn() -> Tensor:
        return torch.rand(COUNT, 1, generator=generator)

    times_T = torch.arange(-PAST, FUTURE).float()
    angles_NT = tau * times_T / (6 + 12 * drawn())
    season_NT = (0.5 + drawn()) * (angles_NT + tau * drawn()).sin()
    season_NT = season_NT + drawn() * (2 * angles_NT + tau * drawn()).sin()
    trend_NT = (2 * drawn() - 1) + (2 * drawn() - 1) * times_T / PAST
    values_NT = season_NT + trend_NT + 0.25 * torch.randn(season_NT.shape, generator=generator)
    return Task(
        model=Forecaster,
        slots=["blocks.0", "blocks.1", "blocks.2", "blocks.3"],
        **_shards(values_NT[:, :PAST], values_NT[:, PAST:]),
        loss=mse_loss,
        optimizer=partial(Adam, lr=2e-3),
        batch_size=64,
        epochs=6,
    )


# -- patches of images -------------------------------------------------------------------------------------------

SIDE, SHAPES = 16, 8


class Block(nn.Module):
    """[B, T, C] -> [B, T, C]: attention over the patches and an MLP, each with a residual path."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.inward, self.outward = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, h_BTC: Tensor) -> Tensor:
        parts = self.inward(self.before(h_BTC)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h_BTC = h_BTC + self.outward(scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return h_BTC + self.mlp(self.between(h_BTC))


class VisionTransformer(nn.Module):
    """Images [B, 1, 16, 16] -> [B, 8]: patches of 4 x 4, two blocks, and the mean over the patches."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, channels, 4, stride=4)
        self.place = nn.Parameter(0.02 * torch.randn(SIDE, channels))
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, SHAPES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BTC = self.patches(x_BCHW).flatten(2).transpose(1, 2) + self.place
        scores: Tensor = self.head(self.norm(self.blocks(h_BTC)).mean(dim=1))
        return scores


def patches() -> Task:
    """Images of one of eight shapes, of any size and at any place, with noise; the class is the shape."""
    generator = torch.Generator().manual_seed(13)
    classes_N = torch.randint(SHAPES, (COUNT,), generator=generator)
    size_N, *centre_2N = torch.rand(3, COUNT, 1, 1, generator=generator)
    size_N = 3 + 2.5 * size_N
    across_NHW = torch.arange(SIDE) - size_N - (SIDE - 1 - 2 * size_N) * centre_2N[0]
    down_NHW = torch.arange(SIDE)[:, None] - size_N - (SIDE - 1 - 2 * size_N) * centre_2N[1]
    x_NHW, y_NHW = across_NHW / size_N, down_NHW / size_N
    furthest_NHW, radius_NHW = torch.maximum(x_NHW.abs(), y_NHW.abs()), torch.hypot(x_NHW, y_NHW)
    shapes = [
        radius_NHW < 1,  # a disc
        (radius_NHW < 1) & (radius_NHW > 0.6),  # a ring
        furthest_NHW < 0.85,  # a square
        (furthest_NHW < 0.85) & (furthest_NHW > 0.5),  # a frame
        x_NHW.abs() + y_NHW.abs() < 1.1,  # a diamond
        (torch.minimum(x_NHW.abs(), y_NHW.abs()) < 0.25) & (furthest_NHW < 1),  # an upright cross
        ((x_NHW.abs() - y_NHW.abs()).abs() < 0.3) & (furthest_NHW < 0.85),  # a diagonal cross
        (x_NHW.abs() < (y_NHW + 1) / 2) & (y_NHW < 0.8),  # a triangle
    ]
    images_NHW = torch.stack(shapes, dim=1)[torch.arange(COUNT), classes_N].float()
    images_NHW += 0.4 * torch.randn(images_NHW.shape, generator=generator)
    return Task(
        model=VisionTransformer,
        slots=["blocks.0", "blocks.1", "norm"],
        **_shards(images_NHW[:, None], classes_N),
        loss=cross_entropy,
        optimizer=partial(AdamW, lr=2e-3),
        batch_size=64,
        epochs=7,
    )


# -- clicks ------------------------------------------------------------------------------------------------------

VALUES = (40, 30, 20, 20, 12, 8, 5, 3)
"""Number of values of each categorical feature. No two features share a row of the table of embeddings."""


class ClickHost(nn.Module):
    """Categorical features [B, 8] -> the logit of a click [B]: embeddings, side by side, and an MLP."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(sum(VALUES), width // 4)
        self.first = nn.Sequential(nn.Linear(len(VALUES) * (width // 4), width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 1)

    def forward(self, features_BT: Tensor) -> Tensor:
        h_BTC = self.embed(features_BT)
        logits: Tensor = self.head(self.second(self.first(h_BTC.flatten(1))))[:, 0]
        return logits


def clicks() -> Task:
    """Rows of categorical features, some values of which are frequent; whether a click follows is drawn.

    Its logit is the sum of a weight of each value and of the inner products of the factors of each two values, as in a
    factorization machine.
    """
    generator = torch.Generator().manual_seed(14)
    columns, factors = [], []
    for values in VALUES:
        share = 1 / (1 + torch.arange(values)) ** 0.7
        columns.append(torch.multinomial(share, COUNT, replacement=True, generator=generator))
        factors.append(torch.randn(values, 4, generator=generator)[columns[-1]])
    factors_NTC = 0.6 * torch.stack(factors, dim=1)
    weights_N = sum(torch.randn(values, generator=generator)[x_N] for values, x_N in zip(VALUES, columns, strict=True))
    pairs_N = (factors_NTC.sum(dim=1).square() - factors_NTC.square().sum(dim=1)).sum(dim=1) / 2
    chance_N = (0.5 * weights_N + pairs_N - 1).sigmoid()
    clicks_N = (torch.rand(COUNT, generator=generator) < chance_N).float()
    rows_NT = torch.stack(columns, dim=1) + torch.tensor([sum(VALUES[:place]) for place in range(len(VALUES))])
    return Task(
        model=ClickHost,
        slots=["embed", "first", "second"],
        **_shards(rows_NT, clicks_N),
        loss=binary_cross_entropy_with_logits,
        optimizer=partial(Adam, lr=2e-3),
        batch_size=64,
        epochs=8,
    )


LATER: dict[str, Case] = {
    "graph": Case(graph, tuple(partial(GraphNetwork, n) for n in (28, 40, 56, 80, 112))),
    "forecast": Case(forecast, tuple(partial(Forecaster, n) for n in (24, 32, 48, 64, 96))),
    "patches": Case(patches, tuple(partial(VisionTransformer, n) for n in (32, 48, 64, 96))),
    "clicks": Case(clicks, tuple(partial(ClickHost, n) for n in (32, 48, 64, 96, 128, 192))),
}
