"""The actors of a run, and the arguments with which each is started."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from actors import hosted_components
from actors.emergency_actor import SinkVariables, emergency
from actors.policy_transport import SentPolicy
from actors.shell import ActorSpec
from actors.supervision import ChildSpec, Strategy
from actors.task_transport import SentSurvey
from esper.archive.run_directory import emergency_folder, faults_file, telemetry_folder
from esper.config.joined import RunConfig
from esper.setup.assembly import RunKey
from esper.setup.survey import Survey
from esper.telemetry.environment import TelemetryVariables

SPARE = "tamiyo-spare"
"""Name of the spare. This actor is started in advance. It is called only after the policy's actor has died and the
spare has replaced it."""

STRATEGIES = {
    "emergency": Strategy.ONE_FOR_ONE,
    "tolaria": Strategy.ONE_FOR_ALL,  # all ranks of the trainer restart together
    "tamiyo": Strategy.ONE_FOR_ONE,
    "kasmina": Strategy.ONE_FOR_ONE,
}
"""Component -> restart strategy of its actors."""


def actor_roles(config: RunConfig) -> dict[str, str]:
    """Return a mapping from the name of each actor of a run to its component, in the order of the actors' start."""
    roles = {"emergency": "emergency", "tolaria": "tolaria", "tamiyo": "tamiyo", "kasmina": "kasmina"}
    if config.growth.enabled:
        roles |= dict.fromkeys(manager_names(config), "kasmina")
        roles[SPARE] = "tamiyo"
    return roles


def manager_names(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the managers, the actors that incubate seeds. A run without growth has no managers."""
    return tuple(f"manager-{number}" for number in range(config.growth.managers)) if config.growth.enabled else ()


@dataclass(frozen=True)
class RunActors:
    """The actors of one run. Ray must be up when `specs` is called, because it counts Ray's GPUs."""

    survey: Survey
    key: RunKey
    sent: SentSurvey
    path: Path
    """The run directory."""
    word: Path
    """The file of the emergency word."""
    policy: SentPolicy | None = None
    """The user's policy. None: the policy that the config names."""

    @property
    def config(self) -> RunConfig:
        """The run's config."""
        return self.survey.config

    def children(self) -> list[ChildSpec]:
        """Return the supervisor's description of every actor of the run."""
        return [ChildSpec(name, role, role, STRATEGIES[role]) for name, role in actor_roles(self.config).items()]

    def specs(self, generation: int) -> dict[str, ActorSpec]:
        """Return a mapping from the name of each actor to the arguments with which it is started in a generation."""
        key = replace(self.key, generation=generation)
        without_secret = replace(key, secret=b"")  # only actors that sign or check commands get the secret
        incubates = (hosted_components.manager, (self.sent, without_secret, self.word))
        settings = self.config.emergency
        queue = (emergency_folder(self.path), self.word, settings, key.run_id, generation, SinkVariables.of(settings))
        builds: dict[str, tuple[Callable[..., Any], tuple[object, ...]]] = {
            "emergency": (emergency, queue),
            "tolaria": (hosted_components.tolaria, (self.sent, without_secret, self.word)),
            "tamiyo": (hosted_components.tamiyo, (self.sent, key, self.policy)),
            SPARE: (hosted_components.tamiyo, (self.sent, key, self.policy)),
            "kasmina": (hosted_components.kasmina, (self.sent, key)),
            **dict.fromkeys(manager_names(self.config), incubates),
        }
        roles = actor_roles(self.config)
        return {name: self._spec(generation, roles[name], name, *builds[name]) for name in roles}

    def _spec(
        self, generation: int, role: str, name: str, build: Callable[..., Any], arguments: tuple[object, ...]
    ) -> ActorSpec:
        config, computes = self.config, name == "tolaria" or name in manager_names(self.config)
        return ActorSpec(
            role=role,
            name=name,
            run_id=self.key.run_id,
            generation=generation,
            cpus=1.0 if computes else 0.0,
            gpus=self._gpu_share() if computes and config.run.device.startswith("cuda") else 0.0,
            threads=config.run.threads,
            telemetry_folder=telemetry_folder(self.path) if config.telemetry.enabled else None,
            build=build,
            arguments=arguments,
            faults=config.faults,
            faults_file=faults_file(self.path, self.key.generation),
            variables=TelemetryVariables.of(os.environ),
            asynchronous=role == "emergency",
        )

    def _gpu_share(self) -> float:
        """Return the number of GPUs of a computing actor: 1, or an equal share of all GPUs if there are too few."""
        there: float = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        return min(1.0, there / (1 + self.config.growth.managers))
