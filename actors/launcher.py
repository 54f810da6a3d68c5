"""A run across processes on Ray. Its results have the same bits as the results of a run in one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import nn

from actors.bring_up import bring_up, fault_points
from actors.embedded_ray import EmbeddedRay
from actors.joined_ray import JoinedRay
from actors.policy_transport import SentPolicy
from actors.task_transport import SentSurvey
from esper.config.joined import RunConfig
from esper.emergency.settings import CONDUCTOR
from esper.errors import ConfigError
from esper.export.loading import load
from esper.flow.launching import BringUp
from esper.flow.places import OnRay
from esper.ground.clock import Clock, SystemClock
from esper.setup.survey import Survey
from esper.tamiyo.policy_check import policy_in_words
from esper.task import Task
from esper.user_code.task_reference import Reference


class RayLauncher:
    """Starts one run with an actor for each component, on a new Ray or on a Ray that is up."""

    conductor_name: ClassVar[str] = CONDUCTOR

    def __init__(self, on: OnRay) -> None:
        """Raises: ConfigError: `embedded` is not a Ray that is up, or `policy` is not a policy or cannot be sent."""
        if on.embedded is not None and not isinstance(on.embedded, EmbeddedRay | JoinedRay):
            raise ConfigError("embedded", on.embedded, "give an actors.embedded_ray.EmbeddedRay, or leave it out")
        self.clock: Clock = SystemClock()
        self._embedded = on.embedded
        self._policy = SentPolicy.of(on.policy) if on.policy is not None else None
        self.policy = policy_in_words(on.policy)

    def fault_points(self, config: RunConfig) -> Mapping[str, set[str]]:
        """Return a mapping from the name of each process of a run with this config to its fault points."""
        return fault_points(config)

    def prepare(self, survey: Survey, reference: Reference) -> BringUp:
        """Make the task sendable. A task with a reference is sent as this reference, and any other task is pickled.

        Raises:
            TaskError: the task has no reference and cannot be pickled. Nothing was written.
        """
        return bring_up(SentSurvey.of(survey, reference), self._embedded, self._policy)

    def network(self, path: Path, task: Task, fence: int) -> nn.Module:
        """Load the network from a checkpoint, because the trainer's process has ended. The tensors of the network are
        on the CPU.

        Raises:
            CheckpointCorrupt: the checkpoint does not load.
        """
        return load(path, task=task, fence=fence)
