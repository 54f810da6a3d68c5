"""How a task reaches another process: by its reference where it has one, else as it is. It builds nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle

from esper.errors import TaskError
from esper.kasmina.blueprints import BLUEPRINTS, Registry
from esper.prospect import Prospect, open_data
from esper.references import Reference, load_task
from esper.summary import file_digest
from esper.task import Task


@dataclass(frozen=True)
class TaskSource:
    """A task that can be sent. A referenced one is loaded anew by each process, with the blueprints it registers."""

    reference: Reference
    task: Task | None
    blueprints: Registry | None
    digest: str | None = None
    """Of the file that a referenced task comes from."""

    @classmethod
    def of(cls, prospect: Prospect, reference: Reference) -> TaskSource:
        """The source of a prospect's task.

        Raises:
            TaskError: it has no reference and cannot be sent as it is.
        """
        if reference.text:
            return cls(_from_anywhere(reference), None, None, file_digest(reference))
        try:
            cloudpickle.dumps((prospect.task, prospect.blueprints))  # type: ignore[no-untyped-call]
        except Exception as error:
            mend = f"it cannot be sent to actors ({error}); give its reference, or run it in this process"
            raise TaskError("task", type(error).__name__, mend) from error
        return cls(reference, prospect.task, prospect.blueprints)

    def load(self) -> tuple[Task, Registry]:
        """The task and its blueprints, in this process."""
        if self.task is not None and self.blueprints is not None:
            return self.task, self.blueprints
        task, found = load_task(self.reference.text)
        if file_digest(found) != self.digest:
            raise TaskError("task", self.reference.text, f"its file changed since the run began ({found.file})")
        return task, BLUEPRINTS


@dataclass(frozen=True)
class SentProspect:
    """A prospect without what is rebuilt on the other side: the task, its data, its blueprints."""

    source: TaskSource
    measured: Any  # Any: a Prospect whose task, data and blueprints are None; only `open` below looks at it

    @classmethod
    def of(cls, prospect: Prospect, reference: Reference) -> SentProspect:
        """What to send of a prospect."""
        bare: Any = {"task": None, "data": None, "blueprints": None}
        return cls(TaskSource.of(prospect, reference), replace(prospect, **bare))

    def open(self) -> Prospect:
        """The whole prospect, with the task's data opened in this process; what was measured is not measured again."""
        task, blueprints = self.source.load()
        data = open_data(task, self.measured.config)
        whole: Prospect = replace(self.measured, task=task, data=data, blueprints=blueprints)
        return whole


def _from_anywhere(reference: Reference) -> Reference:
    """The same task, named so that a process in another directory finds it."""
    place, _, attribute = reference.text.rpartition(":")
    return replace(reference, text=f"{Path(place).absolute()}:{attribute}") if place.endswith(".py") else reference
