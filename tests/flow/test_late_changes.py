"""What changes for the first time at step 30, after the survey: a fence refuses it by name, or it is kept."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stopping import stop
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esper import resume, run
from esper.errors import EmergencyStop, StateNotKept, TaskError
from esper.ground.heartbeat import beats
from esper.setup.survey import survey_of
from esper.task import Task
from esper.testing import Bands, TinyHost, telling, tiny_config, tiny_task

SETTINGS = {"scale": 1.0}
LOG: list[float] = []
NOTES: dict[str, Tensor] = {}
RECENT: deque[Tensor] = deque([torch.ones(2)] * 2, maxlen=2)


@functools.lru_cache
def noise(channels: int) -> Tensor:
    return torch.randn(channels)


@functools.lru_cache
def cosines(channels: int) -> Tensor:
    return torch.arange(float(channels)).cos()


class Late(TinyHost):
    """The tiny host, which counts its training steps in a buffer and calls `late(self, x)` in the 30th."""

    shared = 1.0

    def __init__(self, late: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(8))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.late, self.scale = late, 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            if self.steps == 30:
                self.late(self, x)
        return super().forward(self.norm(x * self.scale * self.shared) + self.frozen(x) / 10 + self.average[0])


def register(what: str, module: nn.Module) -> Callable[[Any, Tensor], object]:
    return lambda host, _: parametrize.register_parametrization(host.body, what, module, unsafe=True)


def set_in_closure() -> Callable[[], Late]:
    factor = 1.0

    class Closing(Late):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal factor
            if self.training and self.steps == 30:
                factor = 2.0
            return super().forward(x * factor)

    return partial(Closing, lambda *_: None)


CHANGES: dict[str, Callable[[Any, Tensor], object]] = {
    "task.model: scale": lambda host, _: setattr(host, "scale", 2.0),
    "task.model: rng": lambda host, _: setattr(host, "rng", np.random.default_rng(1)),
    "task.model: norm.momentum": lambda host, _: setattr(host.norm, "momentum", 0.5),
    "task.model: body._forward_hooks": lambda host, _: host.body.register_forward_hook(lambda *_: None),
    "task.model: requires_grad of frozen.weight": lambda host, _: host.frozen.requires_grad_(True),
    "task.model: requires_grad of body.weight": lambda host, _: host.body.requires_grad_(False),
    "task.model: body.weight": lambda host, _: setattr(host.body, "weight", nn.Parameter(host.body.weight * 2)),
    "task.model: frozen.weight": lambda host, _: setattr(host.frozen, "weight", host.body.weight),
    "task.model: extra": lambda host, _: host.add_module("extra", nn.ReLU()),
    "task.model: body.parametrizations": register("bias", nn.Tanh()),
    "task.model: average": lambda host, x: setattr(host, "average", x.mean(0).repeat(2, 1)),
    "task.model: _non_persistent_buffers_set": lambda host, _: host.register_buffer("average", host.average, False),
    f"module {__name__}: Late.shared": lambda *_: setattr(Late, "shared", 2.0),
    f"module {__name__}: SETTINGS": lambda *_: SETTINGS.update(shift=2.0),
    f"module {__name__}: LATER": lambda *_: globals().setdefault("LATER", torch.ones(2)),
    f"module {__name__}: noise": lambda _, x: x.add_(noise(8)),
}


MENDS = {
    "task.model: norm.momentum": "count the steps in a buffer and compute the value from that in each forward, or "
    "return it from get_extra_state and put it back in set_extra_state",
    "task.model: rng": "draw from the seeded global generators (torch.rand without generator=, random, numpy.random)",
    "task.model: average": "size a table that grows for the longest input",
    f"module {__name__}: Late.shared": "or keep it in the model, as a buffer; a log may be a list or set that "
    "only grows",
    f"module {__name__}: SETTINGS": "put the entry in when the module is imported, or in the factory; what training "
    "changes may be a buffer of the model, and a log may be a list or set that only grows",
    f"module {__name__}: noise": "call it with these arguments once in the factory, or when the module is imported",
}
"""By what is told: the end of the message. `Keeping` does what the mends say."""


@pytest.mark.parametrize("told", CHANGES)
def test_a_late_change_that_no_checkpoint_keeps_is_refused_at_the_fence(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Late, "shared", 1.0)
    monkeypatch.delitem(globals(), "LATER", raising=False)
    message = refused(tiny_task(model=partial(Late, CHANGES[told])), tmp_path / "run")
    assert message.startswith(told)
    assert told not in MENDS or message.endswith(MENDS[told])


def refused(task: Task, place: Path) -> str:
    """Changes come in the second of the rounds, of 20 steps each: the first fence is the last that is committed."""
    with pytest.raises(StateNotKept) as caught:
        run(task, tiny_config(run__dir=str(place), growth__enabled=False))
    assert caught.value.fence == 2
    assert sorted(path.name for path in (place / "checkpoints").iterdir()) == ["fence-0-g1.pt", "fence-1-g1.pt"]
    return str(caught.value)


def test_a_late_change_of_a_variable_that_a_method_closes_over_is_refused(tmp_path: Path) -> None:
    told = "class set_in_closure.<locals>.Closing: forward.<closure>.factor changed"
    assert refused(tiny_task(model=set_in_closure()), tmp_path / "run").startswith(told)


class Counting(Bands):
    """Counts the samples that it gave in its state dict; at one of them it adds to a dict."""

    def __init__(self, count: int, key: int, at: int) -> None:
        super().__init__(count, key)
        self.at, self.given, self.settings = at, 0, {"scale": 1.0}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.given += 1
        if self.given == self.at:
            self.settings["shift"] = 2.0
        x, target = super().__getitem__(index)
        return x + sum(self.settings.values()), target

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def test_a_late_change_of_a_data_set_is_refused(tmp_path: Path) -> None:
    task = tiny_task(train=Counting(1024, 1, at=1200))
    assert refused(task, tmp_path / "run").startswith("task.train: settings changed")
    with pytest.raises(TaskError, check=telling(field="task.train", value="settings")):
        survey_of(tiny_task(train=Counting(1024, 1, at=700)), tiny_config())  # the survey measures the whole shard


class Slowing(torch.optim.SGD):
    """From its 30th step on it has another attribute, and another group of what it trains."""

    def __init__(self, parameters: Any, moves: bool) -> None:
        super().__init__(parameters, lr=0.1)
        self.moves, self.pace, self.param_groups[0]["done"] = moves, 1.0, 0

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.param_groups[0]["done"] += 1
        if self.param_groups[0]["done"] == 30:
            if self.moves:
                self.param_groups[0]["params"].pop()
            else:
                self.pace = 0.5


@pytest.mark.parametrize(("moves", "told"), [(False, "pace"), (True, "param_groups[0]")])
def test_a_late_change_of_an_optimizer_is_refused(moves: bool, told: str, tmp_path: Path) -> None:
    task = tiny_task(optimizer=partial(Slowing, moves=moves))
    assert refused(task, tmp_path / "run").startswith(f"task.optimizer: {told} changed")


# -- what is kept ------------------------------------------------------------------------------------------------


class Keeping(TinyHost):
    """From its 30th step on it changes what its extra state keeps, what each forward computes anew, and a log.

    It computes a rate and an item of a list from the number of steps. What it takes from a cache and a dict from then
    on, its factory has put there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)
        NOTES.setdefault("late", cosines(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(8))
        self.mode, self.scale, self.last = "first", 1.0, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.scale = 0.5 if self.steps >= 30 else 1.0
        if self.training:
            self.steps += 1
            self.average = self.average * 0.9 + x.detach().mean(0)
        if self.steps >= 30:
            self.mode, self.last = "second", x.detach().mean()
            LOG.append(1.0)
            RECENT.append(x.detach().mean(0))
            x = x * cosines(8) + NOTES.setdefault("late", torch.ones(8))
        self.drop.p = 0.2 if self.steps >= 30 else 0.1
        x = self.drop(x) * (1.0, 0.9)[int(self.steps) % 2]
        return super().forward(x * self.scale + (self.mode == "second") * self.average)

    def get_extra_state(self) -> str:
        return self.mode

    def set_extra_state(self, mode: str) -> None:
        self.mode = mode


class Remembering(Bands):
    """Keeps each sample that it gave."""

    def __init__(self, count: int, key: int) -> None:
        super().__init__(count, key)
        self.given: dict[int, Any] = {}

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.given.setdefault(index, super().__getitem__(index))


def two_schedules(optimizer: torch.optim.Optimizer, total: int) -> Any:
    parts = [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [30])


def keeping_task() -> Task:
    return tiny_task(model=Keeping, train=Remembering(1024, 1), scheduler=two_schedules, epochs=3)


def test_late_changes_that_are_kept_or_made_again_end_in_the_same_bits(tmp_path: Path) -> None:
    alone = run(keeping_task(), tiny_config(run__dir=str(tmp_path / "alone")))
    stop(2, keeping_task(), tiny_config(run__dir=str(tmp_path / "run")))
    result = resume(tmp_path / "run", keeping_task())
    assert (result.weights_sha256, result.test_loss) == (alone.weights_sha256, alone.test_loss)


class Table(TinyHost):
    """Has a table that reaches as far as the largest value that it has seen; `effect` says what its size adds."""

    def __init__(self, effect: float) -> None:
        super().__init__()
        self.effect, self.table = effect, torch.arange(4.0).cos()

    def forward(self, x: Tensor) -> Tensor:
        most = int(x.abs().max())
        if most >= len(self.table):
            self.table = torch.arange(most + 1.0).cos()
        return super().forward(x * self.table[: most + 1].mean() + self.effect * len(self.table))


class BufferTable(TinyHost):
    """Has a table as a buffer, which it registers anew when it sees a larger value, and notes how long it is."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self._grow(longest)

    def _grow(self, longest: int) -> None:
        self.longest = longest
        self.register_buffer("table", torch.arange(1.0 + longest).cos(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        most = int(x.abs().max())
        if most > self.longest:
            self._grow(most)
        return super().forward(x * self.table[x.abs().long()])


def test_a_buffer_that_grows_in_evaluation_is_put_back_with_what_says_how_long_it_is(tmp_path: Path) -> None:
    run(
        replace(table_task("test", 3, 0.0), model=partial(BufferTable, 3), epochs=1),
        tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False),
    )
    with pytest.raises(StateNotKept, check=telling(holder="task.model", attribute="table")):
        run(
            replace(table_task("train", 500, 0.0), model=partial(BufferTable, 3)),
            tiny_config(run__dir=str(tmp_path / "late"), growth__enabled=False),
        )


def test_a_buffer_that_grows_in_the_first_steps_is_refused_by_name_and_its_mend_helps() -> None:
    task = table_task("train", slice(None, None, 2), 0.0)
    with pytest.raises(TaskError, check=telling(field="task.model", value="table")):
        survey_of(replace(task, model=partial(BufferTable, 3)), tiny_config(growth__enabled=False))
    survey_of(replace(task, model=partial(BufferTable, 9)), tiny_config(growth__enabled=False))


def table_task(shard: str, at: int | slice, effect: float) -> Task:
    """Sample `at` of the shard, or several, have a value of 9; all the others are below 4."""
    shards = {"train": Bands(1024, 1), "test": Bands(64, 3)}
    for bands in shards.values():
        bands.inputs.clamp_(-3.9, 3.9)
    shards[shard].inputs[at] = 9.0
    return tiny_task(model=partial(Table, effect), epochs=2, **shards)


@pytest.mark.parametrize(("shard", "at"), [("train", 3), ("train", 500), ("test", 3)])
def test_a_table_that_grows_late_with_what_was_seen_is_let_pass_unless_its_size_matters(
    shard: str, at: int, tmp_path: Path
) -> None:
    """Sample 3 of task.train comes in the third step, after the snapshot of the survey."""
    run(table_task(shard, at, effect=0.0), tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False))
    with pytest.raises(StateNotKept, check=telling(holder="task.model", attribute="table")):
        run(table_task(shard, at, effect=0.1), tiny_config(run__dir=str(tmp_path / "other"), growth__enabled=False))


@pytest.mark.parametrize("halts", [False, True])
def test_the_comparison_of_a_late_table_shows_progress_at_each_forward_and_hears_an_emergency(
    halts: bool,
) -> None:
    seen: list[int] = []

    class Watched(Table):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(beats())
            return super().forward(x)

    task = replace(table_task("train", 500, effect=0.0), model=partial(Watched, 0.0))
    survey = survey_of(task, tiny_config(growth__enabled=False))
    last = survey.total_steps // 2  # sample 500 is in the first epoch
    trainer = survey.trainer("", 0, "tolaria", lambda: halts and trainer.step == last)
    trainer.refuse_unkept(survey.changing)
    seen.clear()
    if halts:
        with pytest.raises(EmergencyStop):
            trainer.run_round(1, last)
    else:
        trainer.run_round(1, last)
    assert len(set(seen)) == len(seen)
    assert (len(seen) > 2 * last) is not halts
