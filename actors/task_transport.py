"""Sends a task to another process. If the task has a reference, the process imports it.

Else the task is sent as bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray import cloudpickle

from esper.archive.resuming import PUT_BACK
from esper.errors import ConfigError, TaskError
from esper.ground.workplace import workplace
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry
from esper.setup.survey import Survey, open_data
from esper.task import Task
from esper.user_code.import_paths import absolute_path, join_path
from esper.user_code.process_state import set_ours
from esper.user_code.source_digests import changed_source, file_digest, source_digests
from esper.user_code.task_reference import Reference, import_task, locate


@dataclass(frozen=True)
class TaskSource:
    """A task that can be sent. If the task has a reference, each process imports the task. The import registers the
    task's blueprints.
    """

    reference: Reference
    path: tuple[str, ...]
    """The sender's import path. The modules of the task are found by this path."""
    digest: str | None = None
    """Digest of the task's file."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Digest of each module of the task, by its path in the task's folder."""
    pickled: bytes | None = None
    """Task and blueprints as bytes, if the task has no reference."""
    started_in: str = ""
    """The working directory at the beginning of the sender's command or call. The task's code may have changed the
    working directory since then."""

    @classmethod
    def of(cls, survey: Survey, reference: Reference) -> TaskSource:
        """Return the source of the task of a survey.

        Raises:
            TaskError: the task has no reference and cannot be sent as bytes.
            ConfigError: the working directory cannot be used.
        """
        where = str(workplace())
        if reference.text:
            digests = file_digest(reference), source_digests(reference)
            return cls(_from_anywhere(reference), absolute_path(), *digests, started_in=where)
        try:
            pickled: bytes = cloudpickle.dumps((survey.task, survey.blueprints))  # type: ignore[no-untyped-call]
        except Exception as error:
            mend = f"it cannot be sent to actors ({error}); give its reference, or run it in this process"
            raise TaskError("task", type(error).__name__, mend) from error
        return cls(reference, absolute_path(), pickled=pickled, started_in=where)

    def load(self) -> tuple[Task, BlueprintRegistry]:
        """Load the task and its blueprints in this process, with the sender's import path and working directory.

        Raises:
            TaskError: a file of the task has changed since the run began, or the task's code raised.
            ConfigError: the sender's working directory does not exist, or this process may not enter it.
        """
        if self.started_in:
            self._enter()
        join_path(self.path)
        if self.pickled is not None:
            return _unpickled(self.pickled)
        located = locate(self.reference.text)
        if located.file is not None and file_digest(located) != self.digest:
            raise TaskError(
                "task", self.reference.text, f"its file has changed since the run began ({located.file}){PUT_BACK}"
            )
        if (other := changed_source(located, self.modules)) is not None:
            raise TaskError(
                "task", self.reference.text, f"a module of it has changed since the run began ({other}){PUT_BACK}"
            )
        return import_task(located)[0], BLUEPRINTS

    def _enter(self) -> None:
        try:
            os.chdir(self.started_in)
        except OSError as error:
            mend = f"the run began there, and it cannot be entered ({error.strerror}); make it again"
            raise ConfigError("working directory", self.started_in, mend) from error


def _unpickled(pickled: bytes) -> tuple[Task, BlueprintRegistry]:
    try:
        made: tuple[Task, BlueprintRegistry] = cloudpickle.loads(pickled)
    except Exception as error:
        mend = f"an actor cannot rebuild it ({error}); give its reference, or run it in one process"
        raise TaskError("task", type(error).__name__, mend) from error
    return made


@dataclass(frozen=True)
class SentSurvey:
    """A survey without the task, its data and its blueprints. In another process, `open` adds them."""

    source: TaskSource
    measured: Any  # Any: a Survey with None as task, data and blueprints; only `open` reads it

    @classmethod
    def of(cls, survey: Survey, reference: Reference) -> SentSurvey:
        """Pack a survey. Raises: TaskError: see `TaskSource.of`."""
        bare: Any = {"task": None, "data": None, "blueprints": None}
        return cls(TaskSource.of(survey, reference), replace(survey, **bare))

    def open(self) -> Survey:
        """Return the whole survey. The task's data is opened in this process. Measurements are not repeated."""
        task, blueprints = self.source.load()
        set_ours(self.measured.config.run.threads)  # the task's code may have changed the settings
        data = open_data(task, self.measured.config)
        whole: Survey = replace(self.measured, task=task, data=data, blueprints=blueprints)
        return whole


def _from_anywhere(reference: Reference) -> Reference:
    """Return the reference in a form that does not depend on the working directory."""
    place, _, attribute = reference.text.rpartition(":")
    by_file = place.endswith(".py") and reference.file is not None
    return replace(reference, text=f"{reference.file}:{attribute}") if by_file else reference
