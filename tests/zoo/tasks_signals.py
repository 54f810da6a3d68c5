"""A small task on signals over time, [B, C, T], that must run as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from esper.task import Task

SIZES = {"train": 96, "pick": 24, "gate": 24, "valid": 20, "test": 260}


def _signals(count: int, key: int) -> TensorDataset:
    """Waves of two channels; the class is the channel that is ahead of the other."""
    draw = torch.Generator().manual_seed(key)
    ahead, phase = torch.randint(2, (count,), generator=draw), 6.3 * torch.rand(count, 1, generator=draw)
    shift = torch.tensor([1.0, -1.0])[ahead][:, None]
    wave = torch.stack([torch.sin(torch.arange(16) * 0.8 + at) for at in (phase, phase + shift)], dim=1)
    return TensorDataset(wave + 0.5 * torch.randn(wave.shape, generator=draw), ahead)


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(before, after, 3, padding=1), nn.BatchNorm1d(after), nn.ReLU(), nn.MaxPool1d(2))


class Convolutional(nn.Module):
    """[B, 2, 16] -> [B, 2]; each stage gives [B, C, T] and halves T."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1, self.stage2, self.drop = _stage(2, 6), _stage(6, 8), nn.Dropout(0.1)
        self.head = nn.Linear(8 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.stage2(self.stage1(x)))
        return self.head(h.view(h.shape[0], -1))


def convolutions_over_time_with_pooling() -> Task:
    return Task(
        model=Convolutional,
        slots=["stage*", "drop"],
        loss=nn.functional.cross_entropy,
        batch_size=16,
        epochs=4,
        round_steps=4,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        **{name: _signals(size, key) for key, (name, size) in enumerate(SIZES.items())},
    )
