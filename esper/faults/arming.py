"""Arms faults in this process, and fires them where their points are passed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from esper.durable.files import set_write_trap
from esper.faults.acts import act
from esper.faults.altered_messages import M, altered, forged
from esper.faults.broken_disk import BrokenDisk, Plan
from esper.faults.fault_checks import check
from esper.faults.fault_spec import FILE_FAULTS, Fault, FaultSpec
from esper.faults.firings import Firing, Firings
from esper.ground.clock import skew
from esper.leyline.base import Message
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import count


@dataclass
class _Armed:
    index: int
    spec: FaultSpec
    actor: str
    passages: int = 0
    earlier: Message | None = None
    """The message that passed the point last. None: none did."""

    def due(self) -> Firing | None:
        """Return the firing of this passage. The caller must claim it before the fault may fire. None: the fault does
        not fire at this passage, because it comes too early, or because there is no earlier command to replay.
        """
        spec = self.spec
        if self.passages < spec.passage or (spec.fault is Fault.REPLAY and self.earlier is None):
            return None
        return Firing(
            fault_index=self.index,
            point=spec.point,
            fault=spec.fault,
            actor=self.actor,
            pid=os.getpid(),
            passage=self.passages,
        )


_armed: dict[str, list[_Armed]] = {}
_firings, _disk = Firings(), BrokenDisk()


def arm(
    specs: Sequence[FaultSpec],
    actor: str = "",
    record: Path | None = None,
    generation: int | None = None,
    incarnation: int = 1,
) -> None:
    """Arm faults in this process and disarm all others. An empty list disarms all.

    Args:
        actor: Name of this process. Faults for another name are left out.
        record: File of the firings of the whole run. None: firings are counted in this process only.
        generation: Generation in which this process is started. None: faults of all generations are armed.
        incarnation: Number of this process among the processes of its actor.

    Raises:
        ConfigError: see `check`; nothing was armed.
    """
    global _firings, _disk
    check(specs)
    skew(0.0)
    set_write_trap(None)
    _armed.clear()
    _firings, _disk = Firings(record), BrokenDisk(record.parent.resolve() if record is not None else None)
    for index, spec in enumerate(specs):
        meant = spec.role in (None, actor) and spec.incarnation in (None, incarnation)
        if meant and (generation is None or spec.generation in (None, generation)):
            _armed.setdefault(spec.point, []).append(_Armed(index, spec, actor))


@contextmanager
def armed(specs: Sequence[FaultSpec], actor: str, record: Path) -> Iterator[None]:
    """Arm faults in this process until the block ends; see `arm`."""
    arm(specs, actor, record)
    try:
        yield
    finally:
        arm(())


def fired() -> int:
    """Return the number of firings in this process."""
    return _firings.here()


def point(name: str, *, round: int | None = None, step: int | None = None) -> None:
    """Pass a fault point. If no fault is armed there, do nothing."""
    if _armed:
        for due in _due(name, round, step):
            act(due.spec)


def message(name: str, passed: M, *, round: int) -> M:
    """Pass a fault point with a message. Return the message, or what a fault makes of it."""
    return _changed(name, passed, round) if _armed else passed


def _changed(name: str, passed: M, round: int) -> M:
    got: Any = passed  # Any: each fault returns a message of the same class
    for due in _due(name, round, None):
        if due.spec.fault is Fault.ALTER:
            got = altered(got, due.spec.fields)
        elif due.spec.fault is Fault.FORGE:
            got = forged(got)
        elif due.spec.fault is Fault.REPLAY:
            got = due.earlier
        else:
            act(due.spec)
    for one in _armed.get(name, ()):
        one.earlier = passed
    return cast(M, got)


def _due(name: str, round: int | None, step: int | None) -> Iterator[_Armed]:
    """Count a passage, and yield each fault that fires there, after its firing was recorded.

    A fault of a file is planned, and fires at the next write to its file.
    """
    group = [armed for armed in _armed.get(name, ()) if armed.spec.counts(round, step)]
    for armed in group:  # each fault counts the passage, even if an earlier fault raises
        armed.passages += 1
    for armed in group:
        firing = armed.due()
        if firing is None:
            continue
        if armed.spec.fault in FILE_FAULTS:
            here = copy_context()  # a thread of the store may write, and it has no telemetry of the run
            claim = partial(here.run, _claimed, firing, armed.spec)
            _disk.plan(Plan(armed.spec.fault, armed.spec.file, claim))
        elif _claimed(firing, armed.spec):
            yield armed


def _claimed(firing: Firing, spec: FaultSpec) -> bool:
    """Record a firing. Return False if the fault has fired as often as asked."""
    if not _firings.claim(firing, spec.times):
        return False
    count("esper.faults.fired")
    severe("fault_fired", Severity.WARNING, **firing.model_dump(mode="json"))
    return True
