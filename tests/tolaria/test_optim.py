"""Optimizers: a seed has one of its own, of the task's kind, with its own course; the host's is never touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training import live_trainer

from esper.errors import TaskError
from esper.setup.survey import survey_of
from esper.testing import telling, tiny_config, tiny_task
from esper.tolaria.optim import FLOOR, SeedOptimizer, build_optimizer, rates_of, seed_rate, stand_ins
from esper.tolaria.trainer import Trainer


def test_a_seeds_rate_rises_linearly_and_then_falls_to_the_floor() -> None:
    course = [seed_rate(step, start=100, total=500, warmup=20) for step in range(100, 501)]

    assert course[0] == pytest.approx(1 / 20)
    assert course[9] == pytest.approx(10 / 20, rel=2e-3)
    assert course[:20] == sorted(course[:20])
    assert course[19] > 0.99
    assert course[20:] == sorted(course[20:], reverse=True)
    assert course[200] == pytest.approx((1 + FLOOR) / 2)  # half-way
    assert course[400] == pytest.approx(FLOOR)
    assert [seed_rate(step, start=100, total=500, warmup=20) for step in (0, 50, 99)] == [0, 0, 0]
    assert 0 < seed_rate(500, start=500, total=500, warmup=1) <= 1


def test_a_seeds_optimizer_is_of_the_tasks_kind_and_follows_the_seeds_own_course() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    task = tiny_task(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    optimizer = SeedOptimizer(task, [parameter], start=100, total=500, warmup=20)

    moved = 0.0
    for step in (100, 101, 300):
        parameter.grad = torch.ones(1)
        optimizer.step(step)
        moved -= 0.5 * seed_rate(step, 100, 500, 20)
        assert parameter.item() == pytest.approx(moved)
    assert isinstance(optimizer.optimizer, torch.optim.SGD)


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TaskError, check=telling(field="task.optimizer", value="list")):
        build_optimizer(tiny_task(optimizer=list), [nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("scheduler", "expected", "warmup"),
    [
        (None, 1.0, 0),
        (lambda o, _: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(step + 1, 5) / 1000), 0.005, 4),
        (lambda o, total: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=total), 5.0, 14),
        (lambda o, total: torch.optim.lr_scheduler.CosineAnnealingLR(o, total), 1.0, 0),
        (lambda o, _: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(step // 10, 2) + 1 - (step > 40)), 3.0, 20),
    ],
    ids=["none", "a factor", "one cycle", "cosine", "stairs"],
)
def test_a_seeds_peak_follows_the_highest_rate_of_the_schedule_and_the_warmup_ends_with_its_first_rise(
    scheduler: Any, expected: float, warmup: int
) -> None:
    task = tiny_task(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), scheduler=scheduler)
    rates = rates_of(task, 50, [nn.Parameter(torch.zeros(1))])
    assert rates.peak_share == pytest.approx(expected)
    assert rates.warmup_steps == warmup


def rates(trainer: Trainer) -> list[dict[str, Any]]:
    """Every hyperparameter of the host's optimizer."""
    optimizer = trainer.parts()["task.optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o, total: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=total),
        lambda o, total: torch.optim.lr_scheduler.CosineAnnealingLR(o, total),
        lambda o, total: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / total),
        lambda o, total: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.CosineAnnealingLR(o, total)],
            [10],
        ),
    ],
    ids=["one cycle", "cosine", "lambda", "sequence"],
)
def test_a_run_made_longer_goes_on_with_the_schedule_of_the_longer_run(scheduler: Any) -> None:
    def trainer(epochs: int) -> Trainer:
        task = tiny_task(
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
            scheduler=scheduler,
            epochs=epochs,
        )
        return live_trainer(survey_of(task, tiny_config()))

    short, longer, made_longer = trainer(2), trainer(3), trainer(3)
    short.train_to(30)
    longer.train_to(30)
    assert rates(short) != rates(longer)
    made_longer.become(short.snapshot())
    assert made_longer.weights_sha256() == short.weights_sha256()
    for step in (31, 40, 64, 96):
        longer.train_to(step)
        made_longer.train_to(step)
        assert rates(made_longer) == rates(longer)
    again = trainer(3)
    again.become(made_longer.snapshot())
    assert rates(again) == rates(made_longer)


def test_copies_of_parameters_have_the_attributes_by_which_a_factory_may_make_groups() -> None:
    marked, plain = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    vars(marked)["rate"] = 1e-4
    assert [vars(one) for one in stand_ins([marked, plain])] == [{"rate": 1e-4}, {}]
