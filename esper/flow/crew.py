"""The components of a run, and the port through which their processes are watched and restarted. For a run in one
process, the implementation of this port does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from esper.archive.recovery_record import Lost, Recovery
from esper.errors import ActorError, EsperError
from esper.leyline.ports import Decider, Inbox, Incubation, LiveHost, Registrar
from esper.telemetry.metric_snapshot import MetricSnapshot


class Crew(Protocol):
    """Watches and restarts the processes of a run.

    Call order: `mend` at the beginning of each fence, and `passed` at its end. After an error of an actor, `lost` is
    called first. Then the next generation of the journal begins, and `revive` is called. `died_starting` and `replaced`
    may be called at any time. They return each death once.
    """

    def metrics(self) -> MetricSnapshot:
        """Return the sums of the metrics of all processes except the conductor's, as they were last reported. Any
        thread may call this method. Counts of processes that have died are included."""
        ...

    def passed(self, fence: int) -> None:
        """Record that the run has passed a fence."""
        ...

    def mend(self) -> None:
        """Restart every dead process that can be restarted alone, which means that all other processes continue.

        Raises:
            ActorLost: a process that cannot be restarted alone has died; the run must go back.
            RestartIntensityExceeded: one process died too often.
        """
        ...

    def lost(self, error: EsperError, fence: int | None) -> Lost:
        """Return the processes that have died. Call this method after the call of a process raised `error`. Call
        `revive` next.

        Args:
            fence: The last fence that the run passed. None: it has passed no fence.

        Raises:
            EsperError: `error` itself, if processes are not restarted after it.
            RestartIntensityExceeded: one process died too often.
        """
        ...

    def revive(self, generation: int) -> None:
        """Restart every dead process. Afterwards every process refuses messages of earlier generations.

        Raises:
            EsperError: a process did not come up.
        """
        ...

    def died_starting(self) -> tuple[ActorError, ...]:
        """Return the deaths of processes that died while they started, since the last call. Each of these processes was
        started again."""
        ...

    def replaced(self) -> tuple[tuple[Lost, Recovery], ...]:
        """Return the processes that were restarted since the last call while all others continued."""
        ...

    def shared(self, snapshot: Any) -> Any:  # Any: a HostSnapshot -> what `LiveHost.snapshot` gives for it
        """Return a snapshot in the form in which components pass it on. In one process it is the snapshot, on Ray an
        object reference."""
        ...


class OneProcess:
    """The `Crew` of a run in one process, where no component can die alone."""

    def metrics(self) -> MetricSnapshot:
        """Return an empty snapshot, because there is no other process."""
        return MetricSnapshot()

    def passed(self, fence: int) -> None:
        """Does nothing."""

    def mend(self) -> None:
        """Does nothing."""

    def lost(self, error: EsperError, fence: int | None) -> Lost:
        """Raise `error`, because a run in one process has no process to restart."""
        del fence
        raise error

    def revive(self, generation: int) -> None:
        """Does nothing."""

    def died_starting(self) -> tuple[ActorError, ...]:
        """Empty."""
        return ()

    def replaced(self) -> tuple[tuple[Lost, Recovery], ...]:
        """Empty."""
        return ()

    def shared(self, snapshot: Any) -> Any:  # Any: a HostSnapshot
        """Return the snapshot unchanged."""
        return snapshot


@dataclass
class Components:
    """The components of a run as the line calls them. They are plain objects in one process, and handles on Ray."""

    trainer: LiveHost
    tamiyo: Decider
    kasmina: Registrar
    incubator: Incubation
    inbox: Inbox
    crew: Crew
