"""Three small hosts of ordinary parts, and a task for each: what grew in them is taken home by the tests of that.

The networks need torch alone: the tests import this file where there is no esper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """[B, 6] of 16 tokens -> [B, 4], by two layers of a transformer; slots of kind NTC. The embedding is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 4, 0.1, batch_first=True) for _ in range(2))
        self.out = nn.Linear(8, 16, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.full((), 0.5), persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        h_BTC = self.embed(tokens_BT) * self.scale
        for layer in self.layers:
            h_BTC = layer(h_BTC)
        return self.out(h_BTC.mean(dim=1))[:, :4]


class Images(nn.Module):
    """[B, 3, 6, 6] -> [B, 4], convolutions with batch norm and dropout; slots of kind NCHW."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.body = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.body(self.stem(x_BCHW))
        return self.head(h_BCHW.mean(dim=(2, 3)))


class Rows(nn.Sequential):
    """[B, 8] -> [B, 4], a perceptron with dropout; slots of kind NC, one of them inside another.

    Its forward pass is that of `nn.Sequential`, which calls each child.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)


SLOTS = {Tokens: ["layers.*"], Images: ["stem", "body"], Rows: ["body", "body.0"]}


class Drawn(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Random inputs for a host, with a class that says whether two of their figures are far from 0."""

    def __init__(self, host: type[nn.Module], count: int, key: int) -> None:
        draw = torch.Generator().manual_seed(key)
        if host is Tokens:
            self.inputs = torch.randint(16, (count, 6), generator=draw)
            far = (self.inputs[:, :2] > 7).long()
        else:
            shape = (3, 6, 6) if host is Images else (8,)
            self.inputs = torch.randn(count, *shape, generator=draw)
            figures = 6 * self.inputs.mean(dim=(2, 3)) if host is Images else self.inputs
            far = (figures[:, :2].abs() > 0.67).long()
        self.targets = 2 * far[:, 0] + far[:, 1]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def task(host: type[nn.Module]) -> Any:  # Any: esper is not there where only the networks are wanted
    """A task of 160 steps in 10 rounds."""
    from esper import Task

    shards = {"train": 512, "valid": 32, "test": 32, "pick": 64, "gate": 64}
    return Task(
        model=host,
        slots=SLOTS[host],
        **{name: Drawn(host, count, key) for key, (name, count) in enumerate(shards.items())},
        loss=nn.functional.cross_entropy,
        batch_size=32,
        epochs=10,
        round_steps=16,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-2),
    )


def tokens() -> Any:
    return task(Tokens)


def images() -> Any:
    return task(Images)


def rows() -> Any:
    return task(Rows)


EASY = {
    "growth.preset": "none",
    "growth.candidates": 4,
    "growth.replicas": 3,
    "growth.twin": False,
    "growth.ramp_steps": 24,
    "growth.warmup_steps": 2,
    "growth.halving_step": 8,
    "growth.probe_ramp_steps": 4,
    "growth.probe_warmup_steps": 1,
    "growth.probation_rounds": 1,
    "growth.min_samples": 32,
    "growth.judge_samples": 64,
    "growth.max_tests": 20,
    "growth.false_pass": 0.99,
    "growth.margin": 1e-9,
    "growth.harm_z": -50.0,
    "growth.parameter_budget": 50.0,
    "growth.cost_budget": 50.0,
    "growth.memory_budget": 50.0,
    "checkpoint.keep": 20,
    "run.threads": 1,
}
"""A config under which nearly any seed passes: what is grown is of many kinds and stages, and soon."""
