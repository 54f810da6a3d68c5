"""Whether the host's forward calls a slot: not every forward of every network does."""

from __future__ import annotations

from esper.errors import TaskError

MOST_SKIPPED = 100
"""Number of consecutive training batches that may skip a slot before it counts as never called. A slot that 9 of 10
forwards skip at random is called in at least one of them with a probability above 1 - 1e-4."""


def not_called(slot: str, step: int, steps: int) -> TaskError:
    """Return the error for a slot that the forwards of `steps` training batches, from step `step` on, skipped."""
    mend = "a slot may be skipped by chance, but not always; name a module around what is skipped"
    return TaskError(f"slot {slot}", f"not called by the forward of {steps} training batches from step {step} on", mend)
