"""Refuses faults that could never fire."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from esper.errors import ConfigError
from esper.faults.acts import error_of
from esper.faults.altered_messages import PASSING, check_fields
from esper.faults.fault_points import POINTS
from esper.faults.fault_spec import Fault, FaultSpec
from esper.ground.suggest import existing_names

AT = {
    Fault.ALTER: tuple(PASSING),
    Fault.FORGE: ("kasmina.receive",),
    Fault.REPLAY: ("kasmina.receive",),
}
"""The points of faults that change a message. A command has its signature only after `tamiyo.command`."""


def check(specs: Sequence[FaultSpec], passed: Mapping[str, Collection[str]] | None = None) -> None:
    """Refuse faults that could never fire.

    Args:
        passed: The points that each process of the run passes, by its name. None: not known yet.

    Raises:
        ConfigError: a point or role does not exist (the error names the nearest); no process passes a point; a fault
            has a round or step although its point has none; it alters a message at a point that no message passes,
            or a field that the message does not have; or an error class does not exist or cannot be made.
    """
    for spec in specs:
        _check_place(spec)
        _check_kind(spec)
        if passed is not None:
            _check_passed(spec, passed)


def _check_place(spec: FaultSpec) -> None:
    if spec.point not in POINTS:
        raise ConfigError("faults.point", spec.point, f"no such point; {existing_names(spec.point, POINTS)}")
    for name in ("round", "step"):
        if getattr(spec, name) is not None and name not in POINTS[spec.point]:
            known = [point for point, knows in POINTS.items() if name in knows]
            raise ConfigError(f"faults.{name}", getattr(spec, name), f"only these points know it: {', '.join(known)}")
    if spec.rank is not None and not spec.point.startswith("tolaria."):
        raise ConfigError("faults.rank", spec.rank, "only points of tolaria have a rank")
    if spec.rank not in (None, 0):
        raise ConfigError("faults.rank", spec.rank, "it needs several ranks; the only rank is 0")


def _check_kind(spec: FaultSpec) -> None:
    if spec.point not in AT.get(spec.fault, POINTS):
        mend = f"it changes a message, and only these points pass one for it: {', '.join(AT[spec.fault])}"
        raise ConfigError("faults.fault", str(spec.fault), mend)
    check_fields(spec.point, spec.fields)
    if spec.fault is Fault.RAISE:
        error_of(spec)


def _check_passed(spec: FaultSpec, passed: Mapping[str, Collection[str]]) -> None:
    passing = [name for name, points in passed.items() if spec.point in points]
    if not passing:
        raise ConfigError("faults.point", spec.point, "no process of this run passes it")
    if spec.role is not None and set(passed) == {""}:
        raise ConfigError("faults.role", spec.role, "this run has one process and no actors; leave it out")
    if spec.role is not None and spec.role not in passed:
        raise ConfigError("faults.role", spec.role, f"no such actor; {existing_names(spec.role, passed)}")
    if spec.role is not None and spec.role not in passing:
        raise ConfigError(
            "faults.role", spec.role, f"it does not pass {spec.point}; these pass it: {', '.join(passing)}"
        )
