"""What the survey's rehearsal refuses by name, and what it takes for the harmless cache that it is."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esper.errors import TaskError
from esper.setup.survey import survey_of
from esper.testing import TinyHost, telling, tiny_config, tiny_task


class Host(TinyHost):
    """The tiny host, which does something more in `forward`: `also(self, x)` may return another input."""

    def __init__(self, also: Callable[[Host, Tensor], Tensor | None], **attributes: Any) -> None:
        super().__init__()
        vars(self).update({name: make() for name, make in attributes.items()})
        self.also = also

    def forward(self, x_BC: Tensor) -> Tensor:
        changed = self.also(self, x_BC)
        scores: Tensor = super().forward(x_BC if changed is None else changed)
        return scores


def count(host: Host, _x: Tensor) -> None:
    host.calls += 1


def count_in_list(host: Host, _x: Tensor) -> None:
    host.calls[0] += 1


def log(host: Host, _x: Tensor) -> None:
    host.calls.append(1)


def draw(host: Host, x: Tensor) -> Tensor:
    return x + torch.rand(x.shape, generator=host.own[0])


def draw_numpy(host: Host, x: Tensor) -> Tensor:
    return x + float(host.own.random())


def advance(host: Host, x: Tensor) -> Tensor:
    return x * (1 + next(host.steps) % 3)


def average(host: Host, x: Tensor) -> Tensor:
    host.means[0].mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x - host.means[0]


def start_with_the_first_batch(host: Host, x: Tensor) -> Tensor:
    if not host.ready:
        host.body.weight.data.div_(x.std())
        host.ready = True
    return x


def stop_after_a_hundred(host: Host, x: Tensor) -> Tensor:
    host.calls += 1
    return x * (host.calls < 100)


HIDDEN_IN_THE_MODEL = {
    "calls": (partial(Host, count, calls=int), "count the steps in a buffer"),
    "calls ": (partial(Host, count_in_list, calls=lambda: [0]), "register its tensors as buffers"),
    "calls  ": (partial(Host, log, calls=list), "return its other values from get_extra_state"),
    "calls   ": (partial(Host, stop_after_a_hundred, calls=int), "or return it from get_extra_state"),
    "own[0]": (partial(Host, draw, own=lambda: [torch.Generator()]), "draw from the seeded global generators"),
    "own": (partial(Host, draw_numpy, own=lambda: np.random.default_rng(1)), "draw from the seeded global generators"),
    "steps": (partial(Host, advance, steps=itertools.count), "an iterator cannot be saved: count the steps"),
    "means[0]": (partial(Host, average, means=lambda: [torch.zeros(8)]), "register it as a buffer"),
    "ready": (partial(Host, start_with_the_first_batch, ready=bool), "or return it from get_extra_state"),
}
"""By path: the model, and a part of the mend."""


@pytest.mark.parametrize("name", HIDDEN_IN_THE_MODEL)
def test_state_in_an_attribute_of_the_model_is_refused_by_its_name_with_a_mend_that_fits(name: str) -> None:
    model, mend = HIDDEN_IN_THE_MODEL[name]
    with pytest.raises(TaskError) as caught:
        survey_of(tiny_task(model=model), tiny_config())
    assert caught.value.field == "task.model"
    assert str(caught.value.value).startswith(name.strip())
    assert mend in caught.value.mend


def keep_last(host: Host, x: Tensor) -> None:
    host.last = x.mean(), host.training


def keep_by_length(host: Host, x: Tensor) -> Tensor:
    if len(x) not in host.tables:
        host.tables[len(x)] = torch.linspace(0, 1, len(x))
    return x + host.tables[len(x)][:, None]


def keep_longest(host: Host, x: Tensor) -> Tensor:
    if len(host.table) < len(x):
        host.table = torch.linspace(0, 1, 1000)[: len(x)]
    return x + host.table[: len(x), None]


CACHES = {
    "the last activation": partial(Host, keep_last, last=lambda: None),
    "a table by length": partial(Host, keep_by_length, tables=dict),
    "the longest table": partial(Host, keep_longest, table=lambda: torch.zeros(0)),
    "a time": partial(Host, lambda _host, _x: None, at=random.SystemRandom().random),
    "the global generators": partial(Host, lambda _host, x: x + torch.rand(8)),
    "a constant drawn at build": partial(Host, lambda host, x: x + host.constant, constant=lambda: torch.rand(8)),
}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_no_state(name: str) -> None:
    assert survey_of(tiny_task(model=CACHES[name]), tiny_config()).total_steps == 320


def test_builds_that_hold_other_numbers_are_refused() -> None:
    own = np.random.default_rng(1)
    unlike = partial(Host, lambda _host, x: x, table=lambda: own.random(8))
    with pytest.raises(TaskError, check=telling(field="task.model", value="table")):
        survey_of(tiny_task(model=unlike), tiny_config())


# -- optimizers and schedulers -----------------------------------------------------------------------------------


class HalfKept(torch.optim.SGD):
    """Goes back to its slow weights every `period` steps. It counts in its state dict; the weights are an attribute."""

    def __init__(self, parameters: Any, period: int) -> None:
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["done"], self.period = 0, period
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        group = self.param_groups[0]
        group["done"] += 1
        if group["done"] % self.period == 0:
            for slow, p in zip(self.slow, group["params"], strict=True):
                p.copy_(slow.lerp_(p, 0.5))


class Lookahead(torch.optim.SGD):
    """SGD that goes back half of the way every `period` steps. Its slow weights and its count are plain attributes."""

    def __init__(self, parameters: Any, period: int) -> None:
        super().__init__(parameters, lr=0.1)
        self.period, self.done = period, 0
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.done += 1
        if self.done % self.period == 0:
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                p.copy_(slow.lerp_(p, 0.5))


@pytest.mark.parametrize(
    ("kind", "period", "value"),
    [
        *((Lookahead, period, r"^(slow\[0\]|done)$") for period in (1, 2, 5)),
        *((HalfKept, n, r"^slow\[0\]$") for n in (5, 12)),
    ],
)
def test_slow_weights_in_attributes_of_the_optimizer_are_refused(kind: Any, period: int, value: str) -> None:
    with pytest.raises(TaskError, check=telling("state_dict", field="task.optimizer", value=re.compile(value))):
        survey_of(tiny_task(optimizer=partial(kind, period=period)), tiny_config())


class Restless:
    """A learning rate that depends on how often it was asked."""

    def __init__(self) -> None:
        self.calls = [0]

    def __call__(self, _step: int) -> float:
        self.calls[0] += 1
        return 1 / self.calls[0]


def with_a_closure(optimizer: torch.optim.Optimizer, _total: int) -> Any:
    rate = Restless()
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step))


def test_a_schedule_with_a_counter_in_a_closure_is_refused() -> None:
    with pytest.raises(TaskError, check=telling(field="task.scheduler", value="lr_lambdas[0].<closure>.rate.calls")):
        survey_of(tiny_task(scheduler=with_a_closure), tiny_config())


class Reluctant(torch.optim.SGD):
    """SGD that counts its steps in its groups, and does not load the state of one that made `most` steps or more."""

    def __init__(self, parameters: Any, most: int, wrong: Exception) -> None:
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["done"], self.most, self.wrong = 0, most, wrong

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.param_groups[0]["done"] += 1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["param_groups"][0]["done"] >= self.most:
            raise self.wrong
        super().load_state_dict(state)


@pytest.mark.parametrize("wrong", [KeyError("slow"), StopIteration("slow")], ids=repr)
@pytest.mark.parametrize("most", [2, 13], ids=["rehearsal", "practice"])
def test_an_optimizer_that_does_not_load_its_state_is_told_as_the_users_exception(most: int, wrong: Exception) -> None:
    told = rf"task\.optimizer = 'load_state_dict, in a fresh build.*': it raised {type(wrong).__name__}.*{__file__}"
    with pytest.raises(TaskError, match=told):
        survey_of(tiny_task(optimizer=partial(Reluctant, most=most, wrong=wrong)), tiny_config())
