"""The error for a slot that the host's forward does not call."""

from __future__ import annotations

from esper.errors import TaskError

MOST_SKIPPED = 100
"""If this number of consecutive training batches skip a slot, the slot counts as never called. If 9 of 10 forwards skip
a slot at random, at least one of these batches calls it with a probability above 1 - 1e-4."""


def not_called(slot: str, step: int, steps: int) -> TaskError:
    """Return the error for a slot that the forwards of `steps` training batches skipped, beginning with step `step`."""
    mend = "a slot may be skipped by chance, but not always; name a module around the skipped part"
    return TaskError(f"slot {slot}", f"not called by the forward of {steps} training batches from step {step} on", mend)
