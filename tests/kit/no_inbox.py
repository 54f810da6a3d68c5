"""An emergency queue that is always empty."""

from __future__ import annotations

from collections.abc import Sequence

from esper.leyline.signals import EmergencySignal


class NoInbox:
    """An `Inbox` without signals."""

    def pending(self) -> tuple[EmergencySignal, ...]:
        return ()

    def acknowledge(self, signal_ids: Sequence[str]) -> None:
        assert not signal_ids

    def close(self) -> None:
        """Nothing to refuse."""
