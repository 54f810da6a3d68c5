"""The conductor's link to the emergency actor. If the actor dies, only this actor is restarted. No signal is lost,
because the new process opens the same queue.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from actors.component_handles import emergency_handle
from actors.remote import Process, Remote
from esper.errors import ActorLost, EsperError
from esper.leyline.signals import EmergencySignal
from esper.telemetry.background import background_context

T = TypeVar("T")

LOOK_S = 0.05
"""Seconds between two checks of the actor's process. Publishers wait only about 2 s for a restart."""


class EmergencyLink:
    """The `EmergencyPort` of the conductor. Any thread may call the methods.

    If the actor dies during a call, it is restarted and the call is repeated. A repeated call has no second effect. If
    the restart fails, the call raises the error of the restart.
    """

    def __init__(self, remote: Remote, drain_slack_s: float, replace: Callable[[ActorLost], None]) -> None:
        """Make the link.

        Args:
            drain_slack_s: Seconds after `drain_s` at which `stop` ends the process.
            replace: Function that restarts the dead actor, or raises an error; see `RayCrew.replace_alone`.
        """
        self._remote, self._actor, self._replace = remote, emergency_handle(remote, drain_slack_s), replace
        self._closes = False
        self._closed: Process | None = None
        """The actor process that was closed to publishers. None: no process was closed."""

    def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]:
        """See `EmergencyService.pending`."""
        return self._outliving(lambda: self._actor.pending(subscriber))

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None:
        """See `EmergencyService.acknowledge`."""
        self._outliving(lambda: self._actor.acknowledge(subscriber, signal_ids))

    def close(self) -> None:
        """See `EmergencyService.close`. If a closed process dies, the process that replaces it is closed, too."""
        self._closes = True
        self._outliving(lambda: None)

    def stop(self, drain_s: float) -> Mapping[str, int]:
        """See `EmergencyService.stop`."""
        self._closes = True
        return self._outliving(lambda: self._actor.stop(drain_s))

    def mend(self) -> None:
        """Restart the actor if its process has ended. Raises: EsperError: see `RayCrew.replace_alone`."""
        if not self._remote.process.is_there:
            self._outliving(self._remote.check)

    def _outliving(self, call: Callable[[], T]) -> T:
        while True:
            try:
                self._close_again()
                return call()
            except ActorLost as death:
                self._replace(death)

    def _close_again(self) -> None:
        here = self._remote.process
        if self._closes and self._closed is not here:
            self._actor.close()
            self._closed = here


class EmergencyGuard:
    """A thread that restarts the emergency actor soon after its death.

    Without this thread, publishers would wait until the conductor calls the actor at the next fence.
    """

    def __init__(self, link: EmergencyLink) -> None:
        self._link, self._over = link, threading.Event()
        context = background_context()  # a new thread does not have the telemetry of its creator
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="esper emergency guard", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """After this call, no further restart begins. This method does not wait for a restart in progress; `join` waits
        for it.
        """
        self._over.set()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            with suppress(EsperError):  # the conductor's next call raises this error and stops the run
                self._link.mend()
