"""Small tasks on rows of numbers that must run as they are. Each public function is a task."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from esper.task import Task

F = nn.functional
WIDTH, CLASSES = 6, 3
SIZES = {"train": 96, "pick": 24, "gate": 24, "valid": 20, "test": 260}
"""Samples of each shard; the test shard has a short last evaluation batch."""


def _rows(count: int, key: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(key))
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()


def _shards(of: Any = lambda x, y: (x, y)) -> dict[str, Any]:
    return {name: TensorDataset(*of(*_rows(size, key))) for key, (name, size) in enumerate(SIZES.items())}


def _task(model: Any, loss: Any = F.cross_entropy, of: Any = lambda x, y: (x, y), **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "model": model,
        "slots": ["body"],
        "loss": loss,
        "batch_size": 16,
        "epochs": 4,
        "round_steps": 4,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    }
    return Task(**(fields | _shards(of) | changes))


class Rows(nn.Module):
    """[B, 6] -> [B, outputs], with a slot "body" of six channels."""

    def __init__(self, outputs: int = CLASSES, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body if body is not None else nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x).relu())


# -- losses ------------------------------------------------------------------------------------------------------


def regression() -> Task:
    def r2(output: Tensor, target: Tensor) -> float:
        return 1 - (output - target).square().mean().item() / target.var().item()

    return _task(lambda: Rows(1), nn.MSELoss(), lambda x, _y: (x, x.square().sum(1, keepdim=True)), metrics={"r2": r2})


def several_labels() -> Task:
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0]))
    return _task(lambda: Rows(2), loss, lambda x, _y: (x, (x[:, :2] > 0.3).float()))


def class_weights() -> Task:
    return _task(Rows, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.2, 4.0]), label_smoothing=0.1))


def tied_autoencoder() -> Task:
    class Tied(Rows):
        def __init__(self) -> None:
            super().__init__(WIDTH)
            self.head.weight = self.body.weight

    return _task(Tied, F.mse_loss, lambda x, _y: (x, x))


def siamese() -> Task:
    class Twins(Rows):
        def forward(self, pair: list[Tensor]) -> tuple[Tensor, Tensor]:
            left, right = self.body(torch.cat(pair, 1)).chunk(2, 1)
            return self.head(left), self.head(right)

    class Pairs(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = self.tensors
            other = (index * 7 + 1) % len(x)
            return [x[index], x[other]], (y[index] == y[other]).float() * 2 - 1

    def loss(output: tuple[Tensor, Tensor], target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cosine_embedding_loss(*output, target, margin=0.2, reduction=reduction)

    shards = {name: Pairs(*_rows(size, key)) for key, (name, size) in enumerate(SIZES.items())}
    return _task(lambda: Twins(4, nn.Linear(2 * WIDTH, 2 * WIDTH)), loss, **shards)


# -- outputs -----------------------------------------------------------------------------------------------------


def output_in_a_dict() -> Task:
    class Two(Rows):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.body(x).relu()
            return {"logits": self.head(hidden), "size": hidden.mean(1)}

    def each(output: dict[str, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(output["logits"], target, reduction="none") + 0.1 * output["size"]

    return _task(
        Two,
        lambda output, target: each(output, target).mean(),
        sample_loss=each,
        metrics={"top": lambda output, target: (output["logits"].argmax(1) == target).float().mean().item()},
    )


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


def output_in_a_dataclass() -> Task:
    class Answering(Rows):
        def forward(self, x: Tensor) -> Answer:
            hidden = self.body(x).relu()
            return Answer(self.head(hidden), hidden)

    def loss(output: Answer, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(output.logits, target, reduction=reduction)

    return _task(Answering, loss, metrics={"top": lambda output, target: (output.logits.argmax(1) == target).sum()})


def output_in_an_ordered_dict() -> Task:
    class Outputs(OrderedDict[str, Tensor]):
        def __getattr__(self, name: str) -> Tensor:
            return self[name]

    class Named(Rows):
        def forward(self, x: Tensor) -> Outputs:
            return Outputs(logits=self.head(self.body(x).relu()))

    def loss(output: Outputs, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(output.logits, target, reduction=reduction)

    return _task(Named, loss)


def inputs_in_a_dict() -> Task:
    class Named(Rows):
        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(torch.cat([left, right], 1))

    def collate(samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return {"left": x[:, :3], "right": x[:, 3:]}, y

    return _task(Named, collate=collate, input_output=lambda model, inputs: model(**inputs))


class Keyed(UserDict[str, Tensor]):
    """Items as attributes too, as the batches of tokenizers have them."""

    def __getattr__(self, name: str) -> Tensor:
        return self.data[name]


@dataclass(frozen=True)
class Given:
    x: Tensor


class Reading(Rows):
    def forward(self, given: Any) -> Tensor:
        return super().forward(given.x)


def inputs_in_a_class_of_their_own() -> Task:
    def collate(samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return Keyed(x=x), y

    return _task(Reading, collate=collate)


def inputs_in_a_dataclass() -> Task:
    def collate(samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        return Given(x), y

    return _task(Reading, collate=collate)


# -- modules -----------------------------------------------------------------------------------------------------


def batch_norm_and_dropout() -> Task:
    def build() -> Rows:
        return Rows(body=nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.2)))

    return _task(build)


def old_weight_norm() -> Task:
    return _task(lambda: Rows(body=nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))))


def spectral_norm() -> Task:
    return _task(lambda: Rows(body=nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))))


def a_hook_that_holds_its_model() -> Task:
    class Hooked(Rows):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDTH))
            self.body.register_forward_hook(lambda _module, _args, output: output * self.scale)

    return _task(Hooked)


def an_average_of_the_weights() -> Task:
    class Averaged(Rows):
        def __init__(self) -> None:
            super().__init__()
            self.average = torch.optim.swa_utils.AveragedModel(self.head).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.average.update_parameters(self.head)
            return super().forward(x)

    return _task(Averaged)


def recomputed_in_the_backward_pass() -> Task:
    class Recomputed(Rows):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False).relu())

    return _task(Recomputed)


def autocast_inside_the_forward() -> Task:
    class Cast(Rows):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                scores = super().forward(x)
            return scores.float()

    return _task(Cast)


def autocast_around_the_forward() -> Task:
    def call(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model(x)
        return scores.float()

    return _task(Rows, input_output=call)


def a_gradient_inside_the_forward() -> Task:
    class Sloped(Rows):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                hidden = self.body(x).tanh()
                (slope,) = torch.autograd.grad(hidden.sum(), x, create_graph=self.training)
            return self.head(hidden + slope)

    return _task(Sloped)


def complex_parameters() -> Task:
    class Filtering(Rows):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.ones(WIDTH // 2 + 1, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=WIDTH))

    return _task(Filtering)


def double_precision() -> Task:
    return _task(lambda: Rows().double(), of=lambda x, y: (x.double(), y))


# -- training ----------------------------------------------------------------------------------------------------


def groups_without_decay() -> Task:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        matrices, others = [], []
        for parameter in parameters:
            (matrices if parameter.ndim > 1 else others).append(parameter)
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 3e-3}]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-2)

    return _task(Rows, optimizer=optimizer)


def adafactor() -> Task:
    return _task(Rows, optimizer=lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2))


def warm_restarts() -> Task:
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    return _task(Rows, scheduler=lambda optimizer, total: restarts(optimizer, T_0=max(1, total // 3)))


def mixup_in_the_collate() -> Task:
    def collate(samples: list[Any]) -> Any:
        x, y = default_collate(samples)
        share, order = torch.rand(len(x), 1), torch.randperm(len(x))
        sharp = F.one_hot(y, CLASSES).float()
        return share * x + (1 - share) * x[order], share * sharp + (1 - share) * sharp[order]

    return _task(Rows, collate=collate)


class Dropping(nn.Module):
    """A layer is left out of one forward in ten (stochastic depth)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        return self.head(h if self.training and torch.rand(()) < 0.1 else h + self.body(h).relu())


def a_layer_that_is_dropped_by_chance() -> Task:
    """Its slot is skipped in some steps."""
    return _task(Dropping)
