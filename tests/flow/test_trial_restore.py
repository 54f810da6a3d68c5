"""Checkpoints whose parts were edited and sealed again: none is gone on from, and the one before it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import stopping
import torch
from torch import Tensor

from esper.archive.history import Past, read_past
from esper.archive.journal import Journal
from esper.archive.run_directory import checkpoints_folder
from esper.config.checkpoint_settings import CheckpointConfig
from esper.durable.streams import write_stream
from esper.errors import DependencyViolationError, StoreCorrupt
from esper.flow.agreement import _check_equal
from esper.flow.checkpoints import Checkpoints
from esper.flow.trial_restore import TrialRestore
from esper.ground.tensors import state_crc32c
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.setup.assembly import RunKey
from esper.setup.survey import Survey, survey_of
from esper.testing import TinyHost, tiny_config, tiny_task
from esper.tolaria.optimizer_state import check_steps
from esper.tolaria.snapshot_codec import from_plain, topology_digest

Content = dict[str, Any]
Edit = Callable[[Content], object]


@dataclass(frozen=True)
class Kept:
    """A copy of a run with checkpoints at fences 0, 5 and 6, and what tries them."""

    folder: Path
    past: Past
    survey: Survey

    def sealed(self, commit: CheckpointWritten, edit: Edit) -> CheckpointWritten:
        """Edit a checkpoint, and make the record of what it is now."""
        file = self.folder / commit.file
        content = torch.load(file, weights_only=True)
        edit(content)
        file.unlink()
        seal = write_stream(file, lambda stream: torch.save(content, stream))
        found: dict[str, Any] = {"length": seal.length, "crc": seal.crc}
        try:
            host = from_plain(content["trainer"])
            found |= {"topology_digest": topology_digest(host.topology), "weights_crc32c": state_crc32c(host.tensors)}
        except (StoreCorrupt, RuntimeError):
            pass  # there is nothing that a digest could be made of
        return commit.model_copy(update=found)

    def latest(self, commits: tuple[CheckpointWritten, ...], **survey: Any) -> int | None:
        """The fence that the run would go on from."""
        identity = self.past.identity
        trial = TrialRestore(replace(self.survey, **survey), RunKey(identity.run_id, 3, b"key"), self.past)
        with Journal(self.folder.parent, 3) as journal:
            checkpoints = Checkpoints(self.folder, journal, CheckpointConfig(), commits, run_id=identity.run_id)
            return checkpoints.load_latest(trial).fence


@pytest.fixture(scope="module")
def survey() -> Survey:
    return survey_of(tiny_task(), tiny_config())


@pytest.fixture
def kept(drained_twice: Path, tmp_path: Path, survey: Survey) -> Kept:
    shutil.copytree(drained_twice, tmp_path / "run")
    return Kept(checkpoints_folder(tmp_path / "run"), read_past(tmp_path / "run"), survey)


def test_a_checkpoint_sealed_again_without_an_edit_is_gone_on_from(kept: Kept) -> None:
    *before, last = kept.past.commits
    assert kept.latest((*before, kept.sealed(last, dict))) == 6
    assert not (kept.folder / "quarantine").exists()


def at(*path: Any, **values: Any) -> Edit:
    """Set values of the dict at a place; `...` stands for the first one there."""

    def edit(content: Content) -> None:
        place: Any = content
        for key in path:
            place = place[next(iter(place)) if key is ... else key]
        place.update(values)

    return edit


def without(*path: Any) -> Edit:
    def edit(content: Content) -> None:
        place: Any = content
        for key in path[:-1]:
            place = place[next(iter(place)) if key is ... else key]
        del place[next(iter(place)) if path[-1] is ... else path[-1]]

    return edit


def in_json(*path: Any, value: Any) -> Edit:
    """Set one value in the JSON text that the keys before "in" lead to; those after it lie in the text."""

    def edit(content: Content) -> None:
        cut = path.index("in")
        place: Any = content
        for key in path[: cut - 1]:
            place = place[key]
        told = json.loads(place[path[cut - 1]])
        inner = told
        for key in path[cut + 1 : -1]:
            inner = inner[key]
        inner[path[-1]] = value(inner[path[-1]]) if callable(value) else value
        place[path[cut - 1]] = json.dumps(told)

    return edit


def plan(*path: str, value: Any) -> Edit:
    return in_json("trainer", "topology", 0, "json", "in", *path, value=value)


def tensor(change: Callable[[Tensor], Tensor]) -> Edit:
    def edit(content: Content) -> None:
        tensors = content["trainer"]["tensors"]
        name = next(iter(tensors))
        tensors[name] = change(tensors[name])

    return edit


GROUP = ("trainer", "optimizer", "param_groups", 0)
STATE = ("trainer", "optimizer", "state", 0)
SEEDS = ("trainer", "seed_optimizers")
TWIN = ("nursery", "twin", "host_snapshot")

UNREADABLE = {
    "tensor: float64": tensor(Tensor.double),
    "tensor: int": tensor(Tensor.int),
    "tensor: another shape": tensor(lambda one: one.new_zeros(1)),
    "tensor: on meta": tensor(lambda one: torch.zeros_like(one, device="meta")),
    "tensor: sparse": tensor(Tensor.to_sparse),
    "tensor: one more": at("trainer", "tensors", more=torch.zeros(2)),
    "tensor: one less": without("trainer", "tensors", ...),
    "optimizer: {}": at("trainer", optimizer={}),
    "optimizer: no state": at("trainer", "optimizer", state={}),
    "optimizer: state of text": at("trainer", "optimizer", state={0: 3}),
    "optimizer: a moment of another shape": at(*STATE, exp_avg=torch.zeros(3)),
    "optimizer: a moment of another dtype": at(*STATE, exp_avg=torch.zeros(3).double()),
    "optimizer: a moment less": without(*STATE, "exp_avg_sq"),
    "optimizer: step is text": at(*STATE, step="x"),
    "optimizer: step in the future": at(*STATE, step=torch.tensor(1e6)),
    "optimizer: lr is text": at(*GROUP, lr="x"),
    "optimizer: lr is nan": at(*GROUP, lr=float("nan")),
    "optimizer: no weight decay": without(*GROUP, "weight_decay"),
    "optimizer: no betas": without(*GROUP, "betas"),
    "optimizer: parameters permuted": lambda content: content["trainer"]["optimizer"]["param_groups"][0][
        "params"
    ].reverse(),
    "optimizer: a group more": lambda content: content["trainer"]["optimizer"]["param_groups"].append({}),
    "scheduler: {}": at("trainer", scheduler={}),
    "seeds' optimizers: one less": without(*SEEDS, ...),
    "seeds' optimizers: one more": at(*SEEDS, more={}),
    "seeds' optimizers: no state": at(*SEEDS, ..., state={}),
    "seeds' optimizers: no groups": at(*SEEDS, ..., param_groups=[]),
    "topology: no weights": at("trainer", "topology", 0, weights=None),
    "topology: weights of another seed": at("trainer", "topology", 0, weights=1),
    "topology: weights are floats": at("trainer", weights=[torch.zeros(3)] * 2),
    "topology: a slot that is not there": plan("slot", value="nope"),
    "topology: a blueprint of another shape": plan("blueprint_id", value="norm"),
    "topology: nothing": at("trainer", topology=[]),
    "rooms: {}": lambda content: content.update(rooms={}),
    "rooms: line {}": at("rooms", line="{}"),
    "rooms: kasmina {}": at("rooms", kasmina="{}"),
    "rooms: tamiyo deep": at("rooms", tamiyo="[" * 100_000),
    "nursery: {}": lambda content: content.update(nursery={}),
    "nursery: twin is a number": at("nursery", twin=1),
    "nursery: twin without a tensor": without(*TWIN, "tensors", ...),
    "nursery: twin without an optimizer": at(*TWIN, optimizer={}),
    "nursery: origin is a number": at("nursery", origin=1),
    "topology: a later start": plan("start_step", value=59),
    "topology: a longer ramp": plan("blend", "ramp_steps", value=400),
    "topology: another alpha": plan("blend", "alpha_target", value=0.3),
    "topology: isolated again": plan("isolated", value=True),
    "topology: a longer warm-up": plan("warmup_steps", value=99),
    "topology: another generation": plan("generation", value=99),
    "topology: another run": plan("run_id", value="another"),
    "topology: another fence": plan("fence", value=99),
    "topology: another device": plan("asked_device", value="cuda:7"),
    "topology: another digest": plan("weights_digest", value="0" * 64),
    "topology: in another order": lambda content: content["trainer"]["topology"].reverse(),
    "trainer: a longer run": at("trainer", total_steps=9_999),
    "trainer: no receipts": at("trainer", receipts=[]),
    "trainer: leaks of nobody": at("trainer", leaks={"nobody": ["body.weight"]}),
    "trainer: best round is nan": at("trainer", best_round=float("nan")),
    "kasmina: another stage": in_json("rooms", "kasmina", "in", "roster", "seeds", 2, "stage", value="FOSSILIZED"),
    "kasmina: an older generation": in_json("rooms", "kasmina", "in", "generation", value=1),
    "line: other steps": in_json("rooms", "line", "in", "tally", "steps", value=3),
    "line: steps beyond floats": in_json("rooms", "line", "in", "tally", "trainer_flops", value=10**400),
    "line: a time that is nan": in_json("rooms", "line", "in", "tally", "training_s", value=float("nan")),
    "nursery: no twin": at("nursery", twin=None),
    "nursery: a twin of another step": at(*TWIN, step=100),
    "nursery: twin_steps is text": at("nursery", twin_steps="x"),
    "another run": lambda content: content.update(run_id="another"),
    "another fence": lambda content: content.update(fence=7),
    "another step": lambda content: content.update(step=-1),
    "rooms: kasmina is a number": at("rooms", kasmina=3),
    "trainer: another fence": at("trainer", fence=-4),
    "trainer: another step": at("trainer", step=7),
    "trainer: total_steps is text": at("trainer", total_steps="many"),
    "trainer: no tensors": at("trainer", tensors={}),
    "topology: another kind": at("trainer", topology=[{"kind": "os.system", "json": "{}", "weights": None}]),
    "optimizer: no groups": at("trainer", "optimizer", param_groups=[]),
    "data: of a data set that keeps nothing": at("trainer", data={"train": {"drawn": 3}}),
    "modules: of one that keeps nothing": at("trainer", modules={"body": {"a": 1}}),
}


@pytest.mark.parametrize("edit", UNREADABLE.values(), ids=UNREADABLE)
def test_an_edited_checkpoint_is_put_aside_and_the_one_before_is_gone_on_from(kept: Kept, edit: Edit) -> None:
    *before, last = kept.past.commits
    assert kept.latest((*before, kept.sealed(last, edit))) == 5
    assert (kept.folder / "quarantine" / last.file).exists()


def test_two_long_values_are_shown_where_they_differ() -> None:
    with pytest.raises(StoreCorrupt, match=r"plans: \.\.\..* 1\], expected \.\.\..* 2\]"):
        _check_equal("plans", [0] * 500 + [1], [0] * 500 + [2])


class Moody(torch.optim.Adam):
    """Loads no state, or none of its hundredth step."""

    least = 0

    def load_state_dict(self, state_dict: Any) -> None:
        if state_dict["state"] and int(state_dict["state"][0]["step"]) > self.least:
            raise RuntimeError("not today")
        super().load_state_dict(state_dict)


def test_an_error_of_the_users_own_at_every_fence_is_told_as_hers_and_moves_nothing(kept: Kept) -> None:
    task = replace(tiny_task(), optimizer=lambda parameters: Moody(parameters, lr=3e-2))
    with pytest.raises(RuntimeError, match="not today"):
        kept.latest(kept.past.commits, task=task)  # that of fence 0 passes, and proves nothing
    assert not (kept.folder / "quarantine").exists()


def test_an_error_of_the_users_own_at_the_last_fence_alone_is_that_of_the_checkpoint(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Moody, "least", 100)
    task = replace(tiny_task(), optimizer=lambda parameters: Moody(parameters, lr=3e-2))
    assert kept.latest(kept.past.commits, task=task) == 5
    assert (kept.folder / "quarantine" / kept.past.commits[-1].file).exists()


class Spare(TinyHost):
    """Has a parameter that no step gives a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = torch.nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize("stop", [0, 3])
def test_an_optimizer_whose_state_begins_with_it_is_gone_on_from_at_each_fence(stop: int, tmp_path: Path) -> None:
    """Adagrad counts 0 steps before its first, and for a parameter without a gradient for ever."""
    task = replace(tiny_task(), model=Spare, optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=3e-2))
    config = tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False)
    stopping.stop(stop, task, config)
    stopping.stop_again(stop + 1, tmp_path / "run", task)
    assert not (checkpoints_folder(tmp_path / "run") / "quarantine").exists()


def test_a_seed_without_a_state_is_refused_only_if_its_weights_have_changed() -> None:
    def adam() -> torch.optim.Optimizer:
        return torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])

    check_steps(adam(), 3, stepped=False)
    with pytest.raises(DependencyViolationError, match="it is empty, although a step was taken"):
        check_steps(adam(), 3, stepped=True)
