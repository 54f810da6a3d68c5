"""The task that drills break, and its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from esper.config.joined import RunConfig, load_config
from esper.errors import DrillImpossible
from esper.faults import FaultSpec
from esper.task import Task
from esper.tasks import bands
from esper.user_code.task_reference import Reference, load_task

TINY = "esper.tasks.bands:clear_task"
"""The task of drills if the user names none. It trains in about a second, and a seed improves it, with any run seed."""
PATIENT: Mapping[str, object] = {
    "policy.deadline_s": 60.0,
    "ray.start_deadline_s": 200.0,
    "checkpoint.fast_rollback_s": 600.0,
    "checkpoint.full_rollback_s": 600.0,
}
"""Deadlines that a busy machine meets, where the user gives none. A drill of a deadline sets a shorter deadline."""


@dataclass(frozen=True)
class TaskUnderDrill:
    """A task with the settings of its runs."""

    task: Task
    reference: Reference
    settings: Mapping[str, object] = field(default_factory=dict)
    """Config values by dotted key."""
    file: Path | None = None
    """Config file of the user. None: there is none."""
    limit_s: float = 600.0
    """Longest time of one command in seconds. After it, the command is killed, and the drill has failed."""

    @classmethod
    def tiny(cls, seed: int) -> Self:
        """Return the tiny task of drills, with a run seed."""
        task, reference = load_task(TINY)
        return cls(task, reference, {**PATIENT, **bands.SETTINGS, "run.seed": seed})

    @classmethod
    def named(cls, text: str, file: Path | None, settings: Mapping[str, object], seed: int | None) -> Self:
        """Load the task of a user. A value of the file or of `settings` is never replaced, except by a given `seed`.

        Args:
            seed: Run seed, which `settings` may replace. None: that of the file.

        Raises:
            ConfigError: the file or a setting is wrong.
            TaskError: as `load_task`.
        """
        task, reference = load_task(text)
        given = load_config(file, settings).model_dump(exclude_unset=True)
        patient = {key: value for key, value in PATIENT.items() if not _has(given, key)}
        seeded = {"run.seed": seed} if seed is not None else {}
        return cls(task, reference, {**patient, **seeded, **settings}, file)

    @property
    def text(self) -> str:
        """Reference of the task for a command line. Raises: DrillImpossible: the task has none."""
        if not self.reference.text:
            raise DrillImpossible("the task was built in Python, and no command line can name it")
        return self.reference.text

    @property
    def started_in(self) -> Path:
        """Folder from which the reference of the task can be found."""
        return Path.cwd()

    def config(self, settings: Mapping[str, object], faults: Iterable[FaultSpec] = ()) -> RunConfig:
        """Return the config of one run. Raises: ConfigError: a setting or a fault is wrong."""
        config = load_config(self.file, {**self.settings, **settings})
        return config.model_copy(update={"faults": tuple(faults)})


def _has(given: Mapping[str, Any], key: str) -> bool:
    """Return whether the tables of a config have a dotted key."""
    table, _, name = key.partition(".")
    return table in given and name in given[table]
