"""The conductor's access to the queue of emergency signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from esper.emergency.settings import CONDUCTOR
from esper.leyline.signals import EmergencySignal


class _Service(Protocol):
    """The methods that a subscriber needs of an emergency service; see `EmergencyService`."""

    def pending(self, subscriber: str) -> tuple[EmergencySignal, ...]: ...

    def acknowledge(self, subscriber: str, signal_ids: Sequence[str]) -> None: ...

    def close(self) -> None: ...


class ConductorInbox:
    """The `Inbox` of a run. It calls an emergency service with the conductor as the subscriber."""

    def __init__(self, service: _Service) -> None:
        self._service = service

    def pending(self) -> tuple[EmergencySignal, ...]:
        """See `Inbox`."""
        return self._service.pending(CONDUCTOR)

    def acknowledge(self, signal_ids: Sequence[str]) -> None:
        """See `Inbox`."""
        self._service.acknowledge(CONDUCTOR, signal_ids)

    def close(self) -> None:
        """See `Inbox`."""
        self._service.close()
