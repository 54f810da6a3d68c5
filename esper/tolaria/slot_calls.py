"""Whether the host's forward calls a slot: not every forward of every network does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from esper.errors import TaskError

MOST_SKIPPED = 100
"""Number of consecutive training batches that may skip a slot before it counts as never called. A slot that 9 of 10
forwards skip at random is called in at least one of them with a probability above 1 - 1e-4."""


def not_called(slot: str, step: int, steps: int) -> TaskError:
    """Return the error for a slot that the forwards of `steps` training batches, from step `step` on, skipped."""
    mend = "a slot may be skipped by chance, but not always; name a module around what is skipped"
    return TaskError(f"slot {slot}", f"not called by the forward of {steps} training batches from step {step} on", mend)


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[None]]:
    """Yield a list that gets one item for each call of the module."""
    calls: list[None] = []

    def count(_module: nn.Module, _args: object, _output: object) -> None:
        calls.append(None)

    handle = module.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()
