"""Task of scikit-learn's handwritten digits: the data, its split, and a small network.

Without scikit-learn the task cannot be built, because its data comes from there.

    B batch   C channel   H, W height and width   K class
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from esper.errors import TaskError
from esper.task import Task

CLASSES = 10
BRIGHTEST = 16.0  # a pixel is the number of dark points, 0..16, in a 4x4 square of the scan
SIZES = {"pick": 200, "gate": 400, "valid": 200, "test": 400}  # the rest, 597, is for training
SPLIT_KEY = 0
BATCH, EPOCHS, EPOCH_SAMPLES = 32, 25, 576  # 25 x 18 = 450 steps, or 15 rounds of 30 steps


def load_images() -> tuple[Tensor, Tensor]:
    """Return images [1797, 1, 8, 8], float32, 0..1, and their digits [1797], int64.

    Raises:
        TaskError: scikit-learn or one of its dependencies is not installed.

    Source: Alpaydin and Kaynak 1998, doi:10.24432/C50P49 (test part), as packed by scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as cause:
        raise TaskError("digits", str(cause), "install scikit-learn: the extra `digits` contains it") from cause
    pixels, digits = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / BRIGHTEST, torch.from_numpy(digits).long()


def split(images: Tensor, digits: Tensor) -> dict[str, TensorDataset]:
    """Divide the samples among `train` and the shards of `SIZES` by a fixed permutation.

    No two shards share a sample.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_KEY))
    sizes = {"train": len(images) - sum(SIZES.values()), **SIZES}
    parts = zip(sizes, torch.split(order, list(sizes.values())), strict=True)
    return {name: TensorDataset(images[part], digits[part]) for name, part in parts}


class DigitReader(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, K]. The network is small on purpose, because a run grows it.

    Its slots are two feature maps, [B, C, 4, 4] and [B, 2C, 2, 2], and the vector [B, 2C] before the head.
    """

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(_stage(1, channels), _stage(channels, 2 * channels))
        self.vector = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2 * channels, CLASSES)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.vector(self.features(images_BCHW)))
        return logits_BK


def _stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1),
        nn.GroupNorm(2, channels_out),  # no batch norm, because outputs must not depend on other samples
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def accuracy(logits_BK: Tensor, digits_B: Tensor) -> Tensor:
    """Return the share of correctly read samples, 0..1, as a scalar tensor."""
    return (logits_BK.argmax(dim=1) == digits_B).float().mean()


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return Adam. Its learning rate was the best in a sweep for the host without seeds."""
    return torch.optim.Adam(parameters, lr=1e-2)


def task() -> Task:
    """Load the digits and build the task.

    Raises:
        TaskError: scikit-learn is not installed.
    """
    shards = split(*load_images())
    return Task(
        model=DigitReader,
        slots=["features.0", "features.1", "vector"],
        train=shards["train"],
        pick=shards["pick"],
        gate=shards["gate"],
        valid=shards["valid"],
        test=shards["test"],
        loss=nn.functional.cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=BATCH,
        epochs=EPOCHS,
        epoch_samples=EPOCH_SAMPLES,
        round_steps=30,
        optimizer=adam,
    )
