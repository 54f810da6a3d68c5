"""One run in this process, without Ray. Its four components are plain objects, which `line.py` calls."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from torch import nn

from esper import faults
from esper.archive.run_directory import emergency_folder
from esper.config.joined import RunConfig
from esper.emergency.conductor_inbox import ConductorInbox
from esper.emergency.emergency_service import EmergencyService
from esper.emergency.hosting import hosted
from esper.emergency.undelivered import report_undelivered
from esper.emergency.word import EmergencyWord
from esper.flow.crew import Components, OneProcess
from esper.flow.launching import BringUp
from esper.flow.places import InProcess
from esper.ground.arguments import check_methods
from esper.ground.clock import Clock, SystemClock
from esper.setup.assembly import RunKey, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.setup.survey import Survey
from esper.tamiyo.policy_check import check_policy, policy_in_words
from esper.task import Task
from esper.tolaria.trainer import Trainer
from esper.user_code.task_reference import Reference

BETWEEN_PROCESSES = ("emergency.start", "kasmina.start", "tamiyo.start", "tolaria.start", "kasmina.adoption_snapshot")
"""Fault points that only a run on actors passes."""


class InProcessLauncher:
    """Brings up one run in this process. Each run needs a new instance."""

    conductor_name: ClassVar[str] = ""

    def __init__(self, on: InProcess) -> None:
        """Raises: ConfigError: `on.policy` is not a policy, or `on.clock` is not a clock."""
        if on.policy is not None:
            check_policy(on.policy)
        check_methods("clock", on.clock, ("now", "monotonic"), "give an object with the methods of SystemClock")
        self.clock: Clock = on.clock or SystemClock()
        self._policy, self.policy = on.policy, policy_in_words(on.policy)
        self._trainer: Trainer | None = None

    def fault_points(self, config: RunConfig) -> Mapping[str, set[str]]:
        """Return the fault points of the only process, which has an empty name."""
        possible = faults.possible(config.growth.enabled and config.growth.entry == "adopt")
        return {"": {point for point in possible if point not in BETWEEN_PROCESSES}}

    def prepare(self, survey: Survey, reference: Reference) -> BringUp:
        """Return the function that brings the components up. Nothing has to be sent to another process."""
        del survey, reference
        return self._bring_up

    def network(self, path: Path, task: Task, fence: int) -> nn.Module:
        """Take the live host out of its trainer and return it. The run directory is not read."""
        del path, task, fence
        assert self._trainer is not None, "asked for after the run"
        return self._trainer.release()

    @contextmanager
    def _bring_up(self, survey: Survey, key: RunKey, path: Path) -> Iterator[Components]:
        emergency = survey.config.emergency
        with EmergencyWord.in_memory() as word:
            service = EmergencyService.open(
                emergency_folder(path),
                word,
                emergency,
                run_id=key.run_id,
                generation=key.generation,
                environment=os.environ,
                clock=self.clock,
            )
            with hosted(service, emergency.drain_s, report_undelivered) as host:
                self._trainer = make_trainer(survey, key, word.halted)
                yield Components(
                    trainer=self._trainer,
                    tamiyo=make_tamiyo(survey, key, self.clock, self._policy),
                    kasmina=make_kasmina(survey, key, self.clock),
                    incubator=make_incubator(survey, key, word.halted, self._trainer),
                    inbox=ConductorInbox(host),
                    crew=OneProcess(),
                )
