"""What a fault is: its point, its kind, and when it fires."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from esper.leyline.base import Settings


class Fault(StrEnum):
    """The failure that a fault injects."""

    RAISE = "raise"
    DELAY = "delay"
    HANG = "hang"
    """A loop in Python that does not end."""
    HANG_C = "hang_c"
    """A C call that does not return and does not release the interpreter's lock."""
    KILL = "kill"
    STOP = "stop"
    PAUSE = "pause"
    """The process stops itself, and another process wakes it."""
    SKEW = "skew"
    """The wall clock of the process is wrong from now on."""
    ALTER = "alter"
    """A command gets other values of some fields."""
    FORGE = "forge"
    """A command is signed with another key."""
    REPLAY = "replay"
    """An earlier command takes the place of a command."""
    NO_SPACE = "no_space"
    """A write fails as on a full disk."""
    IO_ERROR = "io_error"
    """A write fails as on a broken disk."""
    BIT_FLIP = "bit_flip"
    """A write changes a bit, and reports success."""
    TRUNCATE = "truncate"
    """A write writes the first half, and reports success."""


FILE_FAULTS = (Fault.NO_SPACE, Fault.IO_ERROR, Fault.BIT_FLIP, Fault.TRUNCATE)
"""Faults of a file. Such a fault fires at the first write to its file after its point was passed."""


class FaultSpec(Settings):
    """[[faults]]"""

    model_config = ConfigDict(strict=False)

    point: str
    fault: Fault
    role: str | None = None
    """Name of the actor, such as `manager-1`, if several actors pass the point. None: any actor."""
    rank: Annotated[int, Field(ge=0)] | None = None
    """Rank of the trainer. The only rank is 0; another rank needs several ranks."""
    round: Annotated[int, Field(ge=0)] | None = None
    """Count only passages in the round that ends at this fence, or at this fence itself. None: passages in any
    round."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Count only passages directly before this optimizer step of the run. The first step is 0. None: passages before
    any step."""
    generation: Annotated[int, Field(ge=1)] | None = None
    """Fire only in processes that were started in this generation of the run. A restart begins a generation. None: fire
    in processes of any generation.
    """
    incarnation: Annotated[int, Field(ge=1)] | None = None
    """Fire only in this process of its actor: 1 is the first of the run or resume, 2 the one after the first restart of
    this actor. None: fire in any process.
    """
    passage: Annotated[int, Field(ge=1)] = 1
    """Number of the counted passage at which the fault fires first. Each process counts from 1."""
    times: Annotated[int, Field(ge=1)] = 1
    """Number of firings in the whole run. After the first firing, the fault fires at each counted passage until this
    number is reached.
    """
    error: str = "FaultInjected"
    """For `raise`: a class of `esper.errors` that can be made from two texts."""
    seconds: Annotated[float, Field(ge=-1e8, le=1e8)] = 1.0
    """Duration of `delay` and `pause`; difference of the clock for `skew`, which may be negative."""
    fields: dict[str, JsonValue] = Field(default_factory=dict)
    """For `alter`: values of fields of the message."""
    file: str = "*"
    """For faults of a file: pattern of its path in the run directory. `*` also matches `/`."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        """Raises: ValueError: two fields contradict each other."""
        if self.seconds == 0 or (self.seconds < 0 and self.fault is not Fault.SKEW):
            raise ValueError("seconds must be more than 0; for skew, it may be less, too")
        if bool(self.fields) != (self.fault is Fault.ALTER):
            raise ValueError("fields are needed for the fault alter, and for no other")
        if self.file != "*" and self.fault not in FILE_FAULTS:
            raise ValueError(f"file is only for {', '.join(FILE_FAULTS)}")
        return self

    def counts(self, round: int | None, step: int | None) -> bool:
        """Return whether a passage at this round and step counts."""
        return self.round in (None, round) and self.step in (None, step)
