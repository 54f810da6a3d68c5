"""State that a model, a data set and an optimizer keep by themselves: in checkpoints, forks, twin and resumed runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import live_trainer

from esper import resume, run
from esper.archive.journal import RecordKind
from esper.archive.run_directory import journal_file
from esper.durable.log import scan
from esper.errors import Drained, TaskError
from esper.flow.result import Result
from esper.ground.tensors import state_digest
from esper.setup.survey import survey_of
from esper.task import Task
from esper.testing import Bands, StopAt, TinyHost, telling, tiny_config, tiny_task
from esper.user_code.attributes import held_by
from esper.user_code.their_code import marked


class KeepingHost(TinyHost):
    """Adds noise of a generator of its own and counts its calls, both in its extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.calls = torch.Generator().manual_seed(1), 0

    def forward(self, x_BC: Tensor) -> Tensor:
        self.calls += 1
        noise = torch.rand(x_BC.shape, generator=self.own) * (self.calls % 7) / 100
        return super().forward(x_BC + noise)

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls, "own": self.own.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        self.own.set_state(state["own"])


class KeepingBands(Bands):
    """Points moved by noise of a generator of its own, which its state dict keeps."""

    def __init__(self, count: int, key: int) -> None:
        super().__init__(count, key)
        self.own = torch.Generator().manual_seed(2)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, target = super().__getitem__(index)
        return x + torch.rand(8, generator=self.own) / 50, target

    def state_dict(self) -> dict[str, Any]:
        return {"own": self.own.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.own.set_state(state["own"])


class Lookahead(torch.optim.Adam):
    """Adam that goes a third of the way back every five steps; it keeps its slow weights in its state dict."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=3e-2)
        self.done, self.slow = 0, [p.detach().clone() for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.done += 1
        if self.done % 5 == 0:
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                p.copy_(slow.lerp_(p, 2 / 3))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "slow": self.slow, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({name: state[name] for name in ("state", "param_groups")})
        self.slow, self.done = state["slow"], state["done"]


def keeping_task() -> Task:
    shards = {"train": KeepingBands(1024, 1), "gate": KeepingBands(256, 5)}
    return tiny_task(model=KeepingHost, optimizer=Lookahead, **shards)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Result:
    place = tmp_path_factory.mktemp("own") / "run"
    return run(keeping_task(), tiny_config(run__dir=str(place)))


@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(undisturbed: Result, tmp_path: Path) -> None:
    place = tmp_path / "run"
    with pytest.raises(Drained):
        run(keeping_task(), tiny_config(run__dir=str(place)), drain=(watch := StopAt(3)).drain, progress=watch)
    with pytest.raises(Drained):  # a twin is kept by then
        resume(place, keeping_task(), drain=(watch := StopAt(7)).drain, progress=watch)
    result = resume(place, keeping_task())
    assert result.weights_sha256 == undisturbed.weights_sha256
    assert result.twin_weights_sha256 == undisturbed.twin_weights_sha256
    assert result.test_loss == undisturbed.test_loss


class Refusing(KeepingBands):
    """Takes back no state any more once the run has been measured."""

    refuses = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.refuses:
            raise RuntimeError("not today")
        super().load_state_dict(state)


class Measured(StopAt):
    """Has `data` refuse from the end of the survey on."""

    def __init__(self, data: Refusing) -> None:
        super().__init__(3)
        self.data = data

    def started(self, *_: Any) -> None:
        self.data.refuses = True


def test_a_data_set_that_refuses_its_kept_state_is_told_before_the_run_is_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "run"
    alone = tiny_config(run__dir=str(place), growth__enabled=False)
    with pytest.raises(Drained):
        run(keeping_task(), alone, drain=(watch := StopAt(2)).drain, progress=watch)
    with pytest.raises(RuntimeError, match="not today") as caught:
        resume(place, replace(keeping_task(), train=(data := Refusing(1024, 1))), progress=Measured(data))
    assert str(marked(caught.value)).startswith("raised by task.train: load_state_dict (")
    assert not [frame for frame in scan(journal_file(place, 2)).frames if frame.kind == RecordKind.SUPERSEDED]
    with pytest.raises(Drained) as again:
        resume(place, keeping_task(), drain=(watch := StopAt(3)).drain, progress=watch)
    assert again.value.fence == 3


def test_the_twin_is_to_the_bit_the_run_without_growth(undisturbed: Result, tmp_path: Path) -> None:
    task = keeping_task()
    for name in ("first", "second"):  # the second begins with the data set that the first has drawn from
        alone = run(task, tiny_config(run__dir=str(tmp_path / name), growth__enabled=False))
        assert undisturbed.twin_weights_sha256 == alone.weights_sha256
    assert undisturbed.twin_test_loss == alone.test_loss


class Forgetful(KeepingBands):
    """Its state dict lacks what its samples depend on."""

    def __init__(self, count: int, key: int) -> None:
        super().__init__(count, key)
        self.drawn = 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.drawn += 1
        x, target = super().__getitem__(index)
        return x * (1 + self.drawn % 2), target


class OneWay(Bands):
    """It can say its state and not take it back."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class Unplain(KeepingBands):
    """Its state is no plain value."""

    def state_dict(self) -> dict[str, Any]:
        return {"own": self.own}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (Forgetful, r"task\.train = 'drawn': "),
        (
            OneWay,
            r"task\.train = 'state_dict': a data set with a state needs both state_dict and load_state_dict",
        ),
        (Unplain, r"task\.train = '\.own: torch\._C\.Generator': its state_dict may hold numbers"),
    ],
)
def test_a_data_set_that_keeps_its_state_badly_is_refused(data: type[Bands], why: str) -> None:
    with pytest.raises(TaskError, match=why):
        survey_of(tiny_task(train=data(1024, 1)), tiny_config())


def test_extra_state_that_no_checkpoint_can_hold_is_refused() -> None:
    class Unplain(KeepingHost):
        def get_extra_state(self) -> Any:
            return {"calls": self.calls, "own": self.own}

        def set_extra_state(self, state: Any) -> None:
            self.calls, self.own = state["calls"], state["own"]

    with pytest.raises(
        TaskError, check=telling("get_extra_state", field="task.model", value=".own: torch._C.Generator")
    ):
        survey_of(tiny_task(model=Unplain), tiny_config())


class Teacher(TinyHost):
    """Its forward moves a frozen average of its weights, shrinks a trained weight, and lengthens a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Parameter(self.head.weight.detach().clone(), requires_grad=False)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x_BC: Tensor) -> Tensor:
        with torch.no_grad():
            self.average.lerp_(self.head.weight, 0.1)
            self.body.weight.data.mul_(0.999)
            if not self.training:
                self.seen = torch.cat([self.seen, x_BC.mean().reshape(1)])
        return super().forward(x_BC) + x_BC @ self.average.T / 10


@pytest.mark.parametrize("task", [tiny_task(model=Teacher), keeping_task()], ids=["forward", "kept by itself"])
def test_an_evaluation_puts_back_whatever_a_forward_changes(task: Task) -> None:
    survey = survey_of(task, tiny_config())
    looked, alone = (live_trainer(survey) for _ in range(2))
    for trainer in (looked, alone):
        trainer.train_to(2)
    before = state_digest(dict(looked.host.named_parameters()) | dict(looked.host.named_buffers()))
    looked.sample_losses("gate", 0)
    looked.activation("body")
    looked.shard_means("test")
    assert state_digest(dict(looked.host.named_parameters()) | dict(looked.host.named_buffers())) == before
    for trainer in (looked, alone):
        trainer.train_to(4)
    assert looked.weights_sha256() == alone.weights_sha256()


WHOLE = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "view", [WHOLE[..., :1], WHOLE.mT, WHOLE[0, 0, 0], WHOLE[:0], torch.view_as_complex(WHOLE.reshape(-1, 2)).conj()]
)
def test_a_tensor_that_is_held_is_known_by_its_values_however_they_lie_in_memory(view: Tensor) -> None:
    assert held_by({"x": view}) == held_by({"x": view.clone().resolve_conj()})
    if view.numel():
        assert held_by({"x": view}) != held_by({"x": view + 1})
