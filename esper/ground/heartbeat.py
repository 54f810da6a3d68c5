"""A count of the pieces of work that this process has finished. It shows other processes whether a process is busy or
stuck.
"""

from __future__ import annotations

_beats = 0


def beat() -> None:
    """Count one finished piece of work: an optimizer step, an evaluated batch, a measured candidate."""
    global _beats
    _beats += 1


def beats() -> int:
    """Return the number of pieces of work that were finished since the process began."""
    return _beats
