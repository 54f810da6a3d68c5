"""The errors of drills."""

from __future__ import annotations

from esper.errors import EsperError


class DrillImpossible(EsperError):
    """A drill cannot be made with this task or on this machine. `why` says what is missing. Such a drill has failed; it
    is never left out in silence.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"cannot be made here: {self.why}"
