"""The optimizer steps at which the rounds of a run begin and end."""

from __future__ import annotations

import math

from esper.config.joined import RunConfig
from esper.errors import ConfigError, TaskError
from esper.task import Task
from esper.tolaria.data import TaskData

SHORT_RUN_STEPS, SHORT_RUN_ROUNDS, LONG_RUN_ROUNDS = 600, 15, 60
MOST_ROUNDS = 1_000_000
"""Largest number of rounds of a run. One journal record has the steps of all fences, and a record has at most 64
MiB."""


def fences(task: Task, config: RunConfig, data: TaskData) -> tuple[int, ...]:
    """Return the steps at which the rounds of a run begin and end, from 0 to the last step.

    Raises:
        TaskError: a number of the task is less than 1.
        ConfigError: a round is longer than the run, or the run has more than `MOST_ROUNDS` rounds.
    """
    for name in ("epochs", "round_steps"):
        value = getattr(task, name)
        if value is not None and value < 1:
            raise TaskError(f"task.{name}", value, "use 1 or more")
    total = (config.run.epochs or task.epochs) * data.steps_per_epoch
    length = config.run.round_steps or task.round_steps or _round_steps(total)
    if length > total:
        field = "run.round_steps" if config.run.round_steps else "task.round_steps"
        raise ConfigError(field, length, f"the whole run has only {total} steps; use {total} or less")
    if total > length * MOST_ROUNDS:
        mend = (
            f"{total} steps would be {math.ceil(total / length)} rounds; the limit is {MOST_ROUNDS}: make them longer"
        )
        raise ConfigError("run.round_steps", length, mend)
    return (*range(0, total, length), total)


def _round_steps(total: int) -> int:
    rounds = SHORT_RUN_ROUNDS if total <= SHORT_RUN_STEPS else LONG_RUN_ROUNDS
    return math.ceil(total / rounds)
