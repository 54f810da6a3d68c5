"""The component of the emergency actor: the emergency service with the queue in the run directory. The file imports no
torch, so that the actor starts quickly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import ray

from esper.durable.files import atomic_write
from esper.emergency.emergency_service import EmergencyService
from esper.emergency.settings import EmergencyConfig, WebhookSinkConfig
from esper.emergency.word import EmergencyWord
from esper.leyline.signals import EmergencySignal

ADDRESS = "actor"
"""File in `RUN/emergency` with the name of the present emergency actor."""


class EmergencyPort(Protocol):
    """The methods of `EmergencyService` that the conductor calls. `Publisher` calls `publish`."""

    def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]:
        """See `EmergencyService.pending`."""
        ...

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """See `EmergencyService.acknowledge`."""
        ...

    def rebind(self, generation: int) -> None:
        """See `EmergencyService.rebind`."""
        ...

    def close(self) -> None:
        """See `EmergencyService.close`."""
        ...

    def stop(self, drain_s: float) -> Mapping[str, int]:
        """See `EmergencyService.stop`."""
        ...


@dataclass(frozen=True)
class SinkVariables:
    """The environment variables with secrets of sinks, read in the process that begins or resumes the run.

    They are sent to the emergency actor, because the process of the actor may have an older environment.
    """

    values: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, config: EmergencyConfig) -> SinkVariables:
        """Read the variables that the sinks of a config name. A missing variable is left out."""
        webhooks = [sink for sink in config.sinks if isinstance(sink, WebhookSinkConfig)]
        names = [
            name for sink in webhooks for name in (sink.url_env, sink.token_env, sink.proxy_env) if name is not None
        ]
        return cls({name: os.environ[name] for name in names if name in os.environ})


def own_name() -> str:
    """Return the name of the actor of this process."""
    name = ray.get_runtime_context().get_actor_name()
    assert name is not None, "every actor of a run has a name"
    return name


def emergency(
    folder: Path,
    word: Path,
    config: EmergencyConfig,
    run_id: str,
    generation: int,
    variables: SinkVariables,
    name: Callable[[], str] = own_name,
) -> EmergencyService:
    """Open the emergency service of a run, and write the name of this actor into the file that publishers read.

    Args:
        folder: `RUN/emergency`.
        word: The file of the emergency word.

    Raises:
        EsperError: see `EmergencyService.open`; also if the name of the actor could not be written.
    """
    service = EmergencyService.open(
        folder,
        EmergencyWord.attach(word),
        config,
        run_id=run_id,
        generation=generation,
        environment=variables.values,
    )
    atomic_write(folder / ADDRESS, name().encode())
    return service
