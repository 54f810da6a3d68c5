"""A run that is made longer: it can be stopped and resumed again at any place, and its task stays the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stopping import stop, stop_again
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from esper import resume, run
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.config.joined import RunConfig
from esper.errors import ConfigError, FaultInjected, TaskError
from esper.flow.identifying import measured_again
from esper.flow.lengthening import checkpoints_to_go_on_from
from esper.setup.survey import survey_of
from esper.task import Task
from esper.testing import telling, tiny_config, tiny_task


def warmed_up(epochs: int = 2, share: float = 1.0) -> Task:
    """A task whose learning rate depends on the length of the run."""

    def scheduler(optimizer: Optimizer, total_steps: int) -> LRScheduler:
        return OneCycleLR(optimizer, 0.05, total_steps=round(share * total_steps))

    return tiny_task(epochs=epochs, scheduler=scheduler)


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of faults with one fault."""

    def write(point: str, keys: str = "") -> Path:
        file = tmp_path / "faults.toml"
        file.write_text(f'[[faults]]\npoint = "{point}"\nfault = "raise"\n{keys}')
        return file

    return write


def test_a_longer_run_is_resumed_again_and_its_first_steps_are_still_compared(
    tmp_path: Path, broken: Callable[..., Path]
) -> None:
    place = tmp_path / "run"
    run(warmed_up(), tiny_config(run__dir=str(place), growth__enabled=False, growth__after_warmup=True))
    for fault in (("conductor.resume",), ("tolaria.step", "step = 90\n")):
        with pytest.raises(FaultInjected):
            resume(place, warmed_up(), {"run.epochs": 4}, broken=broken(*fault))
    with pytest.raises(TaskError, check=telling("after the same first steps", field="task", value="given from Python")):
        resume(place, warmed_up(share=2.0))
    assert resume(place, warmed_up()).steps == 128


def test_the_rehearsal_of_another_processor_is_not_compared_with_that_of_this_one(tmp_path: Path) -> None:
    place, config = tmp_path / "run", tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False)
    run(warmed_up(1), config)
    began, survey = read_past(place).identity, survey_of(warmed_up(1), config)
    assert measured_again(survey, began) == {}
    other = began.model_copy(update={"cpu": "an abacus", "first_loss": 1.0, "rehearsed_crc32c": 7})
    assert measured_again(survey, other) == {
        "first_loss": began.first_loss,
        "rehearsed_crc32c": began.rehearsed_crc32c,
    }


def test_a_run_is_not_made_longer_within_a_tournament_whose_winner_may_be_adopted(tmp_path: Path) -> None:
    long = {"growth__entry": "adopt", "growth__replicas": 1, "growth__due_rounds": 3}
    place, task = tmp_path / "run", warmed_up(10)
    config = tiny_config(run__dir=str(place), growth__max_tournaments=1, checkpoint__keep=3, **long)
    stop(3, task, config)
    past, survey = read_past(place), survey_of(task, longer(config, 14))
    within = telling("lies within a tournament", "lengthen it after fence 4", field="run.epochs", value=14)
    with pytest.raises(ConfigError, check=within):
        resume(place, task, {"run.epochs": 14})
    assert checkpoints_to_go_on_from(survey_of(task, config), past) == past.commits  # the length stays

    between = past.commits[-1].model_copy(update={"fence": 15, "step": 299})
    ended = replace(past, commits=(*past.commits, between))  # the last round of a run may be short
    assert [one.fence for one in checkpoints_to_go_on_from(survey, ended)] == [0, 1]
    with pytest.raises(ConfigError, check=telling("no checkpoint is at a fence", field="run.epochs", value=14)):
        checkpoints_to_go_on_from(survey, replace(past, commits=(between,)))

    stop_again(4, place, task)
    assert resume(place, task, {"run.epochs": 14}).steps == 448
    kinds = [entry.kind for entry in read_past(place).entries]
    assert kinds.count(RecordKind.ADOPTED) == 1


def longer(config: RunConfig, epochs: int) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"epochs": epochs})})
