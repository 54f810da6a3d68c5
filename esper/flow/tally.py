"""Counts and measured seconds of a run so far. A value that was not measured is absent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import Field

from esper.leyline.base import Message
from esper.setup.growth_log import GrowthLog

Amount = Annotated[int, Field(ge=0, le=10**30)]
"""A count. The limit is far above the counts of any run. It is also far below the largest float, so that sums of counts
can be converted to float.
"""
Elapsed = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Seconds."""


class TallyState(Message):
    """The stored form of a `Tally`."""

    steps: Amount
    trainer_flops: Amount
    incubator_flops: Amount
    incubator_steps: Amount
    training_s: Elapsed
    fences_s: Elapsed
    fence_wait_s: Elapsed
    checkpoint_s: Elapsed
    rollbacks: Amount
    growth: GrowthLog = GrowthLog()
    """Empty if the state was stored by a version without this field."""


class Tally:
    """Steps, modelled compute and measured seconds of a run so far."""

    def __init__(self) -> None:
        self.steps = 0
        self.trainer_flops = 0
        self.incubator_flops = 0
        self.incubator_steps = 0
        self.training_s = 0.0
        self.fences_s = 0.0
        self.fence_wait_s = 0.0
        self.checkpoint_s = 0.0
        self.rollbacks = 0
        self.growth = GrowthLog()

    def state(self) -> TallyState:
        """Return the stored form."""
        return TallyState(**vars(self))

    def restore(self, state: TallyState) -> None:
        """Continue from a stored tally."""
        vars(self).update(dict(state))

    @contextmanager
    def training(self, steps: int, step_flops: int) -> Iterator[None]:
        """Count one round of the live host, and measure its seconds."""
        start = time.monotonic()
        yield
        self.training_s += time.monotonic() - start
        self.steps += steps
        self.trainer_flops += steps * step_flops

    @contextmanager
    def fence(self) -> Iterator[None]:
        """Measure the seconds of a part of the work between the rounds of the live host."""
        start = time.monotonic()
        yield
        self.fences_s += time.monotonic() - start

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the seconds for which the trainer waits for an incubation or for the twin. Call it within `fence`."""
        start = time.monotonic()
        yield
        self.fence_wait_s += time.monotonic() - start

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Measure the seconds of the part of a fence in which the state of the run is copied."""
        start = time.monotonic()
        yield
        self.checkpoint_s += time.monotonic() - start

    @property
    def steps_per_s(self) -> float | None:
        """Trainer steps per second between fences. None before the first round."""
        return self.steps / self.training_s if self.training_s else None
