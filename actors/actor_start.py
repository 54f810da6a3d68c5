"""Starts actors side by side and waits until each is up. The caller selects the actors and repeats failed starts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from ray.actor import ActorHandle

from actors.actor_process import await_ready, check_room, end, spawn
from actors.embedded_ray import RAY
from actors.end_signals import uninterrupted
from actors.remote import Remote
from actors.shell import ActorSpec, Shell
from actors.supervision import Life, Supervisor
from esper.config.joined import RayConfig
from esper.errors import ActorLost
from esper.ground.closing import noted_on
from esper.telemetry.context import span, traceparent


class ActorStart:
    """Starts the actors of one run. One thread at a time may call `start`; any other thread may call `give_up`.

    `_begun` and `_given_up` have no lock, because `give_up` must be able to end processes while `start` waits for them.
    Each change is one assignment or one append. `start` reads `_given_up` after its last append.
    """

    def __init__(self, config: RayConfig, supervisor: Supervisor, look: Callable[[], None]) -> None:
        """`supervisor` receives the outcome of each start.

        `look` raises an error if no actor can come up, for example if Ray has ended.
        """
        self._config, self._supervisor, self._look = config, supervisor, look
        self._begun: list[ActorHandle[Shell]] = []
        """Actors that are starting."""
        self._given_up = False
        self._attempts = Counter[tuple[str, int]]()
        """Number of starts, by actor name and generation."""

    def start(self, wanted: Mapping[Life, ActorSpec]) -> tuple[dict[str, Remote], dict[str, ActorLost]]:
        """Start actors side by side.

        Returns:
            The actors that are up, and the death of each actor that died during its start, by name.

        Raises:
            EsperError: the error of an actor's constructor. Every actor of this call was ended.
            PlacementUnavailable: an actor was not up within the start deadline. Every actor of this call was ended. Or
                Ray does not have the CPUs and GPUs of all these actors; none was started.
            ActorLost: an actor died after `give_up`, or one of Ray's own processes has died.
        """
        began_s, up, died = time.monotonic(), dict[str, Remote](), dict[str, ActorLost]()
        begun = self._begun = list[ActorHandle[Shell]]()
        try:
            self._look()
            check_room(wanted.values())
            for life, spec in wanted.items():
                self._attempts[spec.name, spec.generation] += 1
                attempt = self._attempts[spec.name, spec.generation]
                here = replace(spec, traceparent=traceparent(), incarnation=life.incarnation)
                begun.append(spawn(here, attempt))
            if self._given_up:  # `give_up` may have been called before the starts
                self._end_begun()
            for (life, spec), actor in zip(wanted.items(), begun, strict=True):
                found = self._await(life, spec, actor, began_s)
                if isinstance(found, Remote):
                    up[spec.name] = found
                else:
                    died[spec.name] = found
        except BaseException as error:
            with uninterrupted(), noted_on(error, "ending the actors that were being started"):
                self._end_begun()
            raise
        finally:
            self._begun = []
        return up, died

    def give_up(self) -> None:
        """End all actors that are starting, and all that start later. After this call, `start` raises."""
        self._given_up = True
        self._end_begun()

    def _await(self, life: Life, spec: ActorSpec, actor: ActorHandle[Shell], began_s: float) -> Remote | ActorLost:
        """Wait until one actor is up, or has died. Raises: see `start`."""
        try:
            with span("await actor", role="conductor", actor=spec.name):
                pid = await_ready(spec, actor, began_s, self._config.start_deadline_s, self._look)
        except ActorLost as death:
            if self._given_up or death.role == RAY:  # without Ray no actor can be started again
                raise
            death.actor = spec.name
            return death
        except Exception as error:
            self._supervisor.start_failed(life, error)  # else another thread might restart it
            raise
        self._supervisor.started(life)
        return Remote(spec, actor, pid, patience_s=self._config.collective_timeout_s, look=self._look)

    def _end_begun(self) -> None:
        for actor in tuple(self._begun):
            end(actor)
