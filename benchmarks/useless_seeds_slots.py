"""As `useless_seeds.py`, on two hosts of six and eight slots, so that a slot has one or two of the eight placebos."""

from functools import partial

import torch
from _common import main
from torch import Tensor, nn
from useless_seeds import Host, images, measure, rows


class Deep(nn.Module):
    """A residual MLP of eight blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.head = nn.Linear(16, 4)

    def forward(self, x_BC: Tensor) -> Tensor:
        h_BC = self.first(x_BC)
        for block in self.blocks:
            h_BC = h_BC + block(h_BC.relu())
        scores: Tensor = self.head(h_BC)
        return scores


class DeepImages(nn.Module):
    """Six convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            for channels in (1, 8, 8, 8, 8, 8)
        )
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        pooled = nn.functional.avg_pool2d(x_BCHW, 4)
        scores: Tensor = self.head(torch.flatten(pooled, 1))
        return scores


MANY = {
    "table, MLP of eight slots": Host(Deep, rows, ["blocks.*"]),
    "images, CNN with batch norm of six slots": Host(DeepImages, images, ["blocks.*"]),
}

if __name__ == "__main__":
    main("useless_seeds_slots", __doc__, partial(measure, hosts=MANY), repetitions=50)
