"""A count that goes up with every piece of work this process finishes, so that others can tell busy from stuck."""

from __future__ import annotations

_beats = 0


def beat() -> None:
    """Say that something was finished: an optimizer step, a batch evaluated, a candidate measured."""
    global _beats
    _beats += 1


def beats() -> int:
    """How much was finished since the process began."""
    return _beats
