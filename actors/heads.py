"""Detects the end of Ray's two essential processes, the control store and the raylet."""

from __future__ import annotations

from actors.ray_private import HEADS
from esper.errors import PlacementUnavailable
from esper.ground.machine import is_alive

TRY_AGAIN = "the machine may lack memory or be busy: free some of it and try again"


class Heads:
    """The control store and the raylet of one Ray, from their start on. Any thread may call the methods."""

    def __init__(self) -> None:
        self._processes: tuple[tuple[str, int], ...] = ()

    def add(self, name: str, pid: int) -> None:
        """Record a process that Ray has started, if it is the control store or the raylet."""
        if name in HEADS:
            self._processes += ((name, pid),)

    def gone(self) -> str:
        """Return a description of the first process that has ended. "": both are running."""
        return next((f"{name} (process {pid}) has ended" for name, pid in self._processes if not is_alive(pid)), "")

    def check(self) -> None:
        """Check both processes. Raises: PlacementUnavailable: one of them has ended while Ray starts."""
        if gone := self.gone():
            raise PlacementUnavailable("ray", f"{gone} while Ray started; {TRY_AGAIN}")
