"""Publishes emergency signals from any process that is connected to the Ray of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError

from actors.emergency_actor import ADDRESS
from actors.ray_errors import unwrapped
from actors.shell import Envelope, Reply
from esper.archive.identity import load_identity
from esper.archive.run_directory import emergency_folder
from esper.durable.files import read_small
from esper.emergency.refusals import counted_refusal
from esper.errors import ActorError, EmergencyUnavailable
from esper.leyline.signals import EmergencySignal
from esper.telemetry.context import traceparent
from esper.telemetry.events import Severity, reported

ASK_AGAIN_S = 0.05
"""Seconds between two attempts to reach the actor while it is restarted."""

UNCONNECTED = "this process is not connected to the Ray of the run; send the signal with `esper signal`"

Send = Callable[[str, EmergencySignal, float], int]
"""Function (name of the actor, signal, seconds to wait) -> answer of `publish`.

It raises `ActorError` or OSError if the actor did not answer. Otherwise it raises the error of the actor."""


class Publisher:
    """Publishes to the emergency actor of a run. Any thread may call it.

    While the actor is restarted, `publish` waits. Then it sends the signal to the new process. If the old process had
    accepted the signal, the queue does not accept it again.
    """

    def __init__(self, folder: Path, deadline_s: float, send: Send | None = None) -> None:
        """Make a publisher.

        Args:
            folder: `RUN/emergency`. This folder has the file with the name of the actor.
            deadline_s: Largest number of seconds to wait for an answer (`ray.publish_deadline_s`).
            send: Function that sends a signal. None: it is sent by Ray.
        """
        self._address, self._deadline_s, self._send = folder / ADDRESS, deadline_s, send or RaySender()

    @classmethod
    def of(cls, run_dir: Path, send: Send | None = None) -> Self:
        """Make a publisher with the deadline of a run's config, `ray.publish_deadline_s`.

        Raises: RunDirectoryError, StoreCorrupt: the folder has no run, or its `run.json` cannot be read.
        """
        deadline_s = load_identity(run_dir).config.ray.publish_deadline_s
        return cls(emergency_folder(run_dir), deadline_s, send)

    def publish(self, signal: EmergencySignal) -> int:
        """Publish a signal. On return it is durable, and the emergency word shows it.

        Returns:
            The number of signals that the queue has accepted since it was created.

        Raises:
            EmergencyUnavailable: the run is ending, or this process is not connected to the Ray of the run, and the
                signal was not accepted. Or the actor did not answer within the deadline. Then the signal may have been
                accepted, and the error's cause is the first failure.
            EmergencyQueueFull, DependencyViolationError, StoreWriteFailed: the signal was not accepted.
        """
        until, first = time.monotonic() + self._deadline_s, None
        while True:
            try:
                name = read_small(self._address, limit_bytes=1024).decode()
                return self._send(name, signal, max(0.0, until - time.monotonic()))
            except (ActorError, OSError) as error:
                first = first or error
            if time.monotonic() + ASK_AGAIN_S > until:
                why = f"the emergency actor gave no answer within {self._deadline_s:g} s (ray.publish_deadline_s)"
                late = EmergencyUnavailable(signal.signal_id, why)
                told = {"signal_id": signal.signal_id, "why": why}
                raise reported(late, "emergency_signal_unconfirmed", Severity.CRITICAL, **told) from first
            time.sleep(ASK_AGAIN_S)


class RaySender:
    """A `Send` by Ray. It stores the handle of the last actor, because Ray needs a millisecond to find it by name."""

    def __init__(self) -> None:
        self._last: tuple[str, Any] = ("", None)  # Any: Ray's handle

    def __call__(self, name: str, signal: EmergencySignal, within_s: float) -> int:
        """See `Send`."""
        if not ray.is_initialized():  # else Ray would start a cluster of its own, which takes many seconds
            error = EmergencyUnavailable(signal.signal_id, UNCONNECTED)
            raise counted_refusal(error, signal.signal_id)
        try:
            sent = self._actor(name).call.remote("publish", Envelope(0, traceparent()), (signal,))
            reply: Reply = ray.get(sent, timeout=within_s)
        except RayError as error:
            found = unwrapped(error, "emergency")
            raise found from found.__cause__
        count: int = reply.value
        return count

    def _actor(self, name: str) -> Any:  # Any: Ray's handle
        known, actor = self._last
        if known != name:
            try:
                actor = ray.get_actor(name)
            except ValueError as error:  # the actor has not started, or has ended
                raise ActorError("emergency", f"Ray has no actor {name}") from error
            self._last = (name, actor)
        return actor
