"""Seeds whose state no checkpoint saves are refused before a run; state that is saved, and caches, are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import TaskError
from esper.kasmina.blueprints.catalogue import BlueprintRegistry, blueprint
from esper.leyline.slots import Kind
from esper.setup.survey import Survey, survey_of
from esper.testing import telling, tiny_config, tiny_task


class Seed(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)


class Counts(Seed):
    n = 0

    def forward(self, h: Tensor) -> Tensor:
        self.n += 1
        return super().forward(h) * self.n


class CountsSteps(Seed):
    """Counts only where gradients are on. A compiled host would compile again whenever the count changes."""

    n = 0

    def forward(self, h: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            torch._dynamo.graph_break()
            self.n += 1
        return super().forward(h) * self.n


class Draws(Seed):
    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(3)

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h) + (0 if h.is_meta else torch.rand(1, generator=self.source))


class Averages(Seed):
    mean: Any = 0.0

    def forward(self, h: Tensor) -> Tensor:
        if not h.is_meta:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return super().forward(h) - self.mean


class Numbered(Seed):
    built = 0

    def __init__(self) -> None:
        super().__init__()
        Numbered.built += 1
        self.number = Numbered.built

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h) * self.number


class Buffered(Seed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        self.n += 1
        return super().forward(h) * self.n


class Keeps(Counts):
    def get_extra_state(self) -> int:
        return self.n

    def set_extra_state(self, state: int) -> None:
        self.n = state


class Remembers(Seed):
    last: Tensor

    def forward(self, h: Tensor) -> Tensor:
        self.last = super().forward(h)
        return self.last


def survey_with(kind: type[nn.Module]) -> Survey:
    registry = BlueprintRegistry()
    blueprint("planted", kinds=(Kind.NC,), risk=0.1, registry=registry)(lambda _spec: kind())
    return survey_of(tiny_task(), tiny_config(), registry)


@pytest.mark.parametrize(
    ("kind", "attribute", "mend"),
    [
        (Counts, "n", "get_extra_state"),
        (CountsSteps, "n", "get_extra_state"),
        (Draws, "source", "global generators"),
        (Averages, "mean", "register it as a buffer"),
        (Numbered, "itself", "build the same module in each call"),
    ],
)
def test_state_that_no_checkpoint_saves_is_refused_by_blueprint_and_attribute(kind, attribute, mend):
    with pytest.raises(TaskError, check=telling(mend, field="blueprint planted at body", value=attribute)):
        survey_with(kind)


@pytest.mark.parametrize("kind", [Buffered, Keeps, Remembers])
def test_state_that_is_saved_and_a_cache_are_accepted(kind):
    assert [pair.blueprint_id for pair in survey_with(kind).options] == ["planted"]
