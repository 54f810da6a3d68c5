"""Small tasks on images that must run as they are. Each public function is a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from esper.task import Task

F = nn.functional
SIDE, CHANNELS = 6, 4
SIZES = {"train": 96, "pick": 24, "gate": 24, "valid": 20, "test": 260}


def _pictures(count: int, key: int) -> Tensor:
    return torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(key))


def _brightest(x: Tensor) -> Tensor:
    """The quarter of the picture that is the brightest: 0 to 3."""
    return F.adaptive_avg_pool2d(x, 2).flatten(1).argmax(1)


def _task(model: Any, loss: Any = F.cross_entropy, of: Any = _brightest, **changes: Any) -> Task:
    shards = {}
    for key, (name, size) in enumerate(SIZES.items()):
        x = _pictures(size, key)
        shards[name] = TensorDataset(x, of(x))
    fields: dict[str, Any] = {
        "model": model,
        "slots": ["body"],
        "loss": loss,
        "batch_size": 16,
        "epochs": 4,
        "round_steps": 4,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    }
    return Task(**(fields | shards | changes))


class Pictures(nn.Module):
    """[B, 1, H, W] -> [B, 4]; the slot "body" gives [B, C, H, W]."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, CHANNELS, 3, padding=1), nn.Sequential(*body)
        self.head = nn.Linear(4 * CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(self.stem(x)), 2).flatten(1))


def batch_norm() -> Task:
    def build() -> Pictures:
        return Pictures(nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))

    return _task(build, slots=["stem", "body"])


def residual_with_groups() -> Task:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(2, CHANNELS)
            self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(self.norm(x).relu_())

    return _task(lambda: Pictures(Residual(), Residual()), slots=["body.*"])


def resnet() -> Task:
    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1, self.relu = nn.BatchNorm2d(after), nn.ReLU(inplace=True)
            self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out += self.downsample(x)
            return self.relu(out)

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, CHANNELS, 3, 1, 1)
            self.layer1, self.layer2 = Block(CHANNELS, CHANNELS, 1), Block(CHANNELS, 2 * CHANNELS, 2)
            self.fc = nn.Linear(2 * CHANNELS, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer2(self.layer1(self.conv1(x)))
            return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    return _task(ResNet, slots=["layer*", "layer1.conv2"])


def segmentation_with_a_skip() -> Task:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
            self.body = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(2 * CHANNELS, CHANNELS, 2, stride=2)
            self.head = nn.Conv2d(2 * CHANNELS, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            outer = self.stem(x).relu()
            return self.head(torch.cat([outer, self.up(self.body(outer).relu())], 1))

    def bright(x: Tensor) -> Tensor:
        pixels = (x[:, 0] > 0.5).long()
        return torch.where(x[:, 0].abs() > 2, -1, pixels)  # what is too bright or too dark is not labelled

    return _task(Skipping, nn.CrossEntropyLoss(ignore_index=-1, weight=torch.tensor([1.0, 3.0])), bright)


def patches_with_attention() -> Task:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 8, 2, stride=2)
            self.whole, self.places = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(0.1 * torch.randn(1, 10, 8))
            self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.whole.expand(len(x), -1, -1), tokens], 1) + self.places
            return self.head(self.body(tokens)[:, 0])

    return _task(Patches)


def sizes_that_differ() -> Task:
    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = zip(*samples, strict=True)
        return torch.stack(x)[..., : SIDE - int(y[0]) % 2], torch.stack(y)

    return _task(lambda: Pictures(nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)), collate=collate)


def denoising() -> Task:
    class Denoising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn_like(x) if self.training else torch.zeros_like(x)
            return self.head(self.body(x + 0.3 * noise).relu())

    return _task(Denoising, F.l1_loss, lambda x: x)
