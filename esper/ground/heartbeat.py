"""A count that goes up with every piece of work this process finishes, so that other processes can tell a busy process
from a stuck one.
"""

from __future__ import annotations

_beats = 0


def beat() -> None:
    """Count one finished piece of work: an optimizer step, an evaluated batch, a measured candidate."""
    global _beats
    _beats += 1


def beats() -> int:
    """Pieces of work finished since the process began."""
    return _beats
