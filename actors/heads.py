"""Detects the end of Ray's two essential processes, the control store and the raylet. It ends no process."""

from __future__ import annotations

from actors.ray_private import HEADS
from esper.errors import PlacementUnavailable
from esper.ground.machine import is_alive


class Heads:
    """The control store and the raylet of one Ray, from the moment at which Ray starts them. Any thread may ask."""

    def __init__(self) -> None:
        self._processes: tuple[tuple[str, int], ...] = ()

    def add(self, name: str, pid: int) -> None:
        """Ray has started a process; only the heads among them are recorded."""
        if name in HEADS:
            self._processes += ((name, pid),)

    def gone(self) -> str:
        """Return, in words, the first of them that has ended; "" if both run."""
        return next((f"{name} (process {pid}) has ended" for name, pid in self._processes if not is_alive(pid)), "")

    def check(self) -> None:
        """Raises: PlacementUnavailable: one of them has ended while Ray starts."""
        if gone := self.gone():
            raise PlacementUnavailable("ray", f"{gone} while Ray started")
