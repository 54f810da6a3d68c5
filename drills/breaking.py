"""Short ways to write the faults of drills."""

from __future__ import annotations

from collections.abc import Mapping

from esper.faults import Fault, FaultSpec


def kill(point: str, **when: object) -> FaultSpec:
    """SIGKILL of the process that passes a point. `when`: fields of `FaultSpec`, such as `round`, `step` or `role`."""
    return spec(point, Fault.KILL, **when)


def fail(point: str, error: str = "FaultInjected", **when: object) -> FaultSpec:
    """Raise an error of `esper.errors` at a point."""
    return spec(point, Fault.RAISE, error=error, **when)


def hang(point: str, *, in_c: bool = False, **when: object) -> FaultSpec:
    """An endless loop at a point, in Python or in C."""
    return spec(point, Fault.HANG_C if in_c else Fault.HANG, **when)


def alter(point: str, fields: Mapping[str, object], **when: object) -> FaultSpec:
    """Give a message that passes a point other values of some fields."""
    return spec(point, Fault.ALTER, fields=dict(fields), **when)


def disk(fault: Fault, file: str, point: str, **when: object) -> FaultSpec:
    """Break the next write to a file after a point. `file`: pattern of its path in the run directory."""
    return spec(point, fault, file=file, **when)


def spec(point: str, fault: Fault, **when: object) -> FaultSpec:
    """Return a fault with further fields."""
    return FaultSpec.model_validate({"point": point, "fault": fault, **when})
