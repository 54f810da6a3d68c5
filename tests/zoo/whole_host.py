"""One small but real host: convolutions with batch norm, then a transformer's layers with dropout, and a scheduler.

Its slots are of both kinds, images and sequences. Its weights, its buffers, its optimizer and its schedule change in
every step, so whatever a restore forgets shows in the bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper import Task


class PatchNet(nn.Module):
    """[B, 3, 8, 8] -> [B, 4]: slots "stem" (NCHW), "layers.0" and "layers.1" (NTC)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.patch = nn.Conv2d(8, 8, 4, stride=4)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, 0.1, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Class scores."""
        h_BTC = self.patch(self.stem(x_BCHW).relu()).flatten(2).transpose(1, 2)
        for layer in self.layers:
            h_BTC = layer(h_BTC)
        scores: Tensor = self.head(h_BTC.mean(dim=1))
        return scores


class Blots(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Noise [3, 8, 8], brighter or darker in one quarter or in two; the class says which of two quarters differ."""

    def __init__(self, count: int, key: int) -> None:
        draw = torch.Generator().manual_seed(key)
        self.inputs = 0.5 * torch.randn(count, 3, 8, 8, generator=draw)
        odd = torch.randint(2, (count, 2), generator=draw)
        sign = torch.randint(2, (count, 2), generator=draw) * 2.0 - 1.0
        self.inputs[:, :, :4, :4] += (odd[:, 0] * sign[:, 0])[:, None, None, None]
        self.inputs[:, :, 4:, 4:] += (odd[:, 1] * sign[:, 1])[:, None, None, None]
        self.targets = 2 * odd[:, 0] + odd[:, 1]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


def task() -> Task:
    """160 steps in 8 rounds."""
    return Task(
        model=PatchNet,
        slots=["stem", "layers.*"],
        train=Blots(512, key=1),
        valid=Blots(64, key=2),
        test=Blots(128, key=3),
        pick=Blots(128, key=4),
        gate=Blots(256, key=5),
        loss=nn.functional.cross_entropy,
        batch_size=32,
        epochs=10,
        round_steps=20,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )
