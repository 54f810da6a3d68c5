"""Named fault points: places where a run can be broken on purpose. Free while nothing is armed; never armed by itself.

A point is armed only through the run's config (`[[faults]]`), which the journal records. A fault fires at the n-th
passage of its point in the process that has its role.
"""

from __future__ import annotations

import ctypes
import difflib
import os
import signal
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from esper import errors
from esper.errors import ConfigError, EsperError, FaultInjected

POINTS = (
    "emergency.pending",
    "emergency.publish",
    "emergency.start",
    "kasmina.receive",
    "kasmina.start",
    "kasmina.step",
    "tamiyo.decide",
    "tamiyo.start",
    "tolaria.apply",
    "tolaria.round",
    "tolaria.start",
    "tolaria.step",
)
"""Every point there is, by name; the first part is the role that passes it."""


class Fault(StrEnum):
    """What happens when a point fires."""

    RAISE = "raise"
    DELAY = "delay"
    HANG = "hang"
    """A loop in Python that does not end."""
    HANG_C = "hang_c"
    """A C call that does not return and does not let go of the interpreter."""
    KILL = "kill"
    STOP = "stop"


class FaultSpec(BaseModel):
    """[[faults]]"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    point: str
    fault: Fault
    role: str | None = None
    """The actor that is meant (`manager-1`), where several pass the point; default: all of them."""
    passage: Annotated[int, Field(ge=1)] = 1
    """Fires at this passage of the point, counted from 1 in each process."""
    times: Annotated[int, Field(ge=1)] = 1
    error: str = "FaultInjected"
    """For `raise`: a class of esper.errors that can be made from two texts, or FaultInjected."""
    seconds: Annotated[float, Field(gt=0)] = 1.0
    """For `delay`."""


class _Armed:
    def __init__(self, spec: FaultSpec) -> None:
        self.spec, self.passages, self.fired = spec, 0, 0


_armed: dict[str, list[_Armed]] = {}


def check(specs: Sequence[FaultSpec]) -> None:
    """Refuse what could never fire.

    Raises:
        ConfigError: an unknown point, naming the nearest; an error class that is not there or cannot be made.
    """
    for spec in specs:
        if spec.point not in POINTS:
            near = difflib.get_close_matches(spec.point, POINTS, n=1, cutoff=0.0)[0]
            raise ConfigError("faults.point", spec.point, f"no such point; the nearest is {near}")
        if spec.fault is Fault.RAISE:
            _error(spec)


def arm(specs: Sequence[FaultSpec]) -> None:
    """Arm this process with faults, in place of whatever was armed before; an empty list disarms.

    Raises:
        ConfigError: see `check`; nothing was armed.
    """
    check(specs)
    _armed.clear()
    for spec in specs:
        _armed.setdefault(spec.point, []).append(_Armed(spec))


def fired() -> int:
    """How often armed faults have fired in this process."""
    return sum(armed.fired for group in _armed.values() for armed in group)


def point(name: str) -> None:
    """Pass a fault point: nothing, unless it is armed."""
    if _armed:
        _pass(name)


def _pass(name: str) -> None:
    group = _armed.get(name, ())
    for armed in group:  # all of them pass, also where an earlier one raises
        armed.passages += 1
    for armed in group:
        first = armed.spec.passage
        if first <= armed.passages < first + armed.spec.times:
            armed.fired += 1
            _fire(armed.spec)


def _fire(spec: FaultSpec) -> None:
    if spec.fault is Fault.RAISE:
        raise _error(spec)
    if spec.fault is Fault.DELAY:
        time.sleep(spec.seconds)
    elif spec.fault is Fault.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif spec.fault is Fault.STOP:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif spec.fault is Fault.HANG_C:
        ctypes.PyDLL(None).sleep(1 << 20)  # PyDLL, unlike CDLL, keeps the interpreter's lock
    else:
        while True:
            pass


def _error(spec: FaultSpec) -> EsperError:
    if spec.error == FaultInjected.__name__:
        return FaultInjected(spec.point)
    cls = vars(errors).get(spec.error)
    if not (isinstance(cls, type) and issubclass(cls, EsperError)):
        raise ConfigError("faults.error", spec.error, "no such class in esper.errors")
    try:
        return cls(spec.point, "armed on purpose")
    except TypeError as error:
        raise ConfigError("faults.error", spec.error, "it cannot be made from two texts") from error
