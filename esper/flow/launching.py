"""The port for starting the components of a run. `esper.flow.in_process` implements it for one process,
`actors.launcher` for Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Protocol

from torch import nn

from esper.config.joined import RunConfig
from esper.flow.crew import Components
from esper.ground.clock import Clock
from esper.setup.assembly import RunKey
from esper.setup.survey import Survey
from esper.task import Task
from esper.user_code.task_reference import Reference

BringUp = Callable[[Survey, RunKey, Path], AbstractContextManager[Components]]
"""A function of survey, key and run directory. It returns a context in which the components are up."""


class Launcher(Protocol):
    """Brings up one run, in one process or on Ray. `esper.flow.entry` calls the methods in the order of this class."""

    conductor_name: ClassVar[str]
    """Name of the conductor's process in fault points."""
    clock: Clock
    policy: str
    """Class and version of the policy of the run."""

    def fault_points(self, config: RunConfig) -> Mapping[str, set[str]]:
        """Return the fault points that each process of a run with this config passes, by the name of the process."""
        ...

    def prepare(self, survey: Survey, reference: Reference) -> BringUp:
        """Return the function that brings the components up. Called before anything is written.

        Raises:
            TaskError: the task cannot be sent to the processes of the components.
        """
        ...

    def network(self, path: Path, task: Task, fence: int) -> nn.Module:
        """Return the grown network of a run that has ended, in evaluation mode.

        Args:
            path: The run directory, absolute.
            fence: The last fence of the run.

        Raises:
            CheckpointCorrupt: the checkpoint of that fence does not load.
        """
        ...
