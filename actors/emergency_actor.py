"""The component of the emergency actor: the emergency service with the queue in the run directory. The file imports no
torch, so that the actor starts quickly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import ray

from esper.durable.files import atomic_write
from esper.emergency.emergency_service import EmergencyService
from esper.emergency.settings import EmergencyConfig, WebhookSinkConfig
from esper.emergency.word import EmergencyWord
from esper.errors import RunDirectoryError
from esper.leyline.signals import EmergencySignal

ADDRESS = "actor"
"""File in `RUN/emergency` with the name of the present emergency actor."""
ENDING_S = 20.0
"""Longest wait in seconds for the process that has the queue. If the driver of a run was killed, Ray ends the emergency
actor of that run some seconds later, and a resume may start before that.
"""
AGAIN_S = 0.1
"""Seconds between two attempts to open the queue."""


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

    If another process owns the queue, wait up to `ENDING_S` seconds for its end.

    Args:
        folder: `RUN/emergency`.
        word: The file of the emergency word.

    Raises:
        RunDirectoryError: another process owns the queue, and goes on.
        EsperError: see `EmergencyService.open`; also if the name of the actor could not be written.
    """
    began = time.monotonic()
    while True:
        try:
            service = EmergencyService.open(
                folder,
                EmergencyWord.attach(word),
                config,
                run_id=run_id,
                generation=generation,
                environment=variables.values,
            )
            break
        except RunDirectoryError as error:
            if not isinstance(error.__cause__, BlockingIOError) or time.monotonic() - began > ENDING_S:
                raise
        time.sleep(AGAIN_S)
    atomic_write(folder / ADDRESS, name().encode())
    return service
