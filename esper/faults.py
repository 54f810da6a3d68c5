"""Named fault points, at which a failure can be injected on purpose. A point without an armed fault takes almost no
time.

Only the run's config (`[[faults]]`) arms a point; the journal records the config. A fault fires when a process with its
role passes its point for the n-th time. It fires again at the next passages, until it has fired `times` times in the
whole run. Each firing is recorded in a file of the run before it happens, so that a restarted process does not fire it
again.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esper import errors
from esper.durable.files import read_small
from esper.errors import ConfigError, EsperError, FaultInjected, StoreCorrupt, StoreWriteFailed
from esper.ground.suggest import existing_names
from esper.leyline.base import Seconds, Settings
from esper.telemetry.events import Severity, severe
from esper.telemetry.file_exporter import open_for_append
from esper.telemetry.metrics import count

NOTHING, ROUND, ROUND_AND_STEP = frozenset[str](), frozenset({"round"}), frozenset({"round", "step"})

POINTS = {
    "conductor.begin": NOTHING,
    "conductor.commit": ROUND,
    "conductor.end": NOTHING,
    "conductor.fence": ROUND,
    "conductor.open": NOTHING,
    "conductor.restore": ROUND,
    "conductor.resume": NOTHING,
    "conductor.rollback": ROUND,
    "conductor.start": NOTHING,
    "conductor.supersede": NOTHING,
    "emergency.pending": NOTHING,
    "emergency.publish": NOTHING,
    "emergency.start": NOTHING,
    "kasmina.receive": ROUND,
    "kasmina.start": NOTHING,
    "kasmina.step": frozenset({"step"}),
    "tamiyo.decide": ROUND,
    "tamiyo.start": NOTHING,
    "tolaria.apply": NOTHING,
    "tolaria.round": ROUND_AND_STEP,
    "tolaria.save": ROUND,
    "tolaria.start": NOTHING,
    "tolaria.step": ROUND_AND_STEP,
}
"""The values that a process knows when it passes each fault point: `round`, `step`, both or neither. The part of the
name before the dot is the role of the process that passes the point.
"""


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


class FaultSpec(Settings):
    """[[faults]]"""

    model_config = ConfigDict(strict=False)

    point: str
    fault: Fault
    role: str | None = None
    """Name of the actor, such as `manager-1`, if several actors pass the point. None: any actor."""
    rank: Annotated[int, Field(ge=0)] | None = None
    """Rank of the trainer. The only rank is 0."""
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
    passage: Annotated[int, Field(ge=1)] = 1
    """Number of the counted passage at which the fault fires first. Each process counts from 1."""
    times: Annotated[int, Field(ge=1)] = 1
    """Number of firings in the whole run. After the first firing, the fault fires at each counted passage until this
    number is reached.
    """
    error: str = "FaultInjected"
    """For `raise`: a class of `esper.errors` that can be made from two texts."""
    seconds: Seconds = 1.0
    """Duration of `delay`."""

    def counts(self, round: int | None, step: int | None) -> bool:
        """Return whether a passage at this round and step counts."""
        return self.round in (None, round) and self.step in (None, step)


class Firing(BaseModel):
    """Record of one firing. It is written before the fault fires. `fault_index` is the fault's position in the config,
    from 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault_index: int
    point: str
    fault: Fault
    actor: str
    pid: int
    passage: int


class Firings:
    """The firings of a run, in a file that all processes of the run share. Without a file, the firings of this process
    only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._here = path, list[Firing]()

    def all(self) -> tuple[Firing, ...]:
        """Return all firings so far, in order."""
        if self._path is None or not self._path.exists():
            return tuple(self._here)
        try:
            return tuple(Firing.model_validate_json(line) for line in read_small(self._path).splitlines())
        except ValidationError as error:
            raise StoreCorrupt(str(self._path), "has a line that is not the record of a fired fault") from error

    def claim(self, firing: Firing, times: int) -> bool:
        """Record a firing and return True. If the fault has already fired `times` times in the run, return False.

        Raises:
            StoreWriteFailed: the firing cannot be recorded. The fault does not fire.
        """
        if self._path is None:
            return self._claim(firing, times)
        try:
            with open(open_for_append(self._path), "a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if allowed := self._claim(firing, times):
                    file.write(firing.model_dump_json() + "\n")
            return allowed
        except OSError as error:
            raise StoreWriteFailed(str(self._path), "writing a fault down") from error

    def _claim(self, firing: Firing, times: int) -> bool:
        allowed = sum(before.fault_index == firing.fault_index for before in self.all()) < times
        if allowed:
            self._here.append(firing)
        return allowed

    def here(self) -> int:
        """Return the number of firings in this process."""
        return len(self._here)


class _Armed:
    def __init__(self, index: int, spec: FaultSpec, actor: str) -> None:
        self.index, self.spec, self.actor, self.passages = index, spec, actor, 0

    def due(self) -> Firing | None:
        """Return the firing of this passage. The caller must claim it before the fault may fire. None: this passage
        comes before the first at which the fault fires.
        """
        if self.passages < self.spec.passage:
            return None
        spec = self.spec
        return Firing(
            fault_index=self.index,
            point=spec.point,
            fault=spec.fault,
            actor=self.actor,
            pid=os.getpid(),
            passage=self.passages,
        )


_armed: dict[str, list[_Armed]] = {}
_firings = Firings()


def check(specs: Sequence[FaultSpec], passed: Mapping[str, Collection[str]] | None = None) -> None:
    """Refuse faults that could never fire.

    Args:
        passed: The points that each process of the run passes, by its name. None: not known yet.

    Raises:
        ConfigError: a point or role does not exist (the error names the nearest); no process passes a point; a fault
            has a round or step although its point has none; or an error class does not exist or cannot be made.
    """
    for spec in specs:
        if spec.point not in POINTS:
            raise ConfigError("faults.point", spec.point, f"no such point; {existing_names(spec.point, POINTS)}")
        for name in ("round", "step"):
            if getattr(spec, name) is not None and name not in POINTS[spec.point]:
                known = [point for point, knows in POINTS.items() if name in knows]
                raise ConfigError(
                    f"faults.{name}", getattr(spec, name), f"only these points know it: {', '.join(known)}"
                )
        if spec.rank not in (None, 0) or (spec.rank is not None and not spec.point.startswith("tolaria.")):
            raise ConfigError("faults.rank", spec.rank, "only points of tolaria have a rank, and the only rank is 0")
        if passed is not None:
            _check_passed(spec, passed)
        if spec.fault is Fault.RAISE:
            _error(spec)


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


def arm(specs: Sequence[FaultSpec], actor: str = "", record: Path | None = None, generation: int | None = None) -> None:
    """Arm faults in this process and disarm all others. An empty list disarms all.

    Args:
        actor: Name of this process. Faults for another name are left out.
        record: File of the firings of the whole run. None: firings are counted in this process only.
        generation: Generation in which this process is started. None: faults of all generations are armed.

    Raises:
        ConfigError: see `check`; nothing was armed.
    """
    global _firings
    check(specs)
    _armed.clear()
    _firings = Firings(record)
    for index, spec in enumerate(specs):
        if spec.role in (None, actor) and (generation is None or spec.generation in (None, generation)):
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
        _pass(name, round, step)


def _pass(name: str, round: int | None, step: int | None) -> None:
    group = [armed for armed in _armed.get(name, ()) if armed.spec.counts(round, step)]
    for armed in group:  # each fault counts the passage, even if an earlier fault raises
        armed.passages += 1
    for armed in group:
        firing = armed.due()
        if firing is not None and _firings.claim(firing, armed.spec.times):
            count("esper.faults.fired")
            severe("fault_fired", Severity.WARNING, **firing.model_dump(mode="json"))
            _fire(armed.spec)


def _fire(spec: FaultSpec) -> None:
    if spec.fault is Fault.RAISE:
        raise _error(spec)
    if spec.fault is Fault.DELAY:
        time.sleep(spec.seconds)
    elif spec.fault is Fault.KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif spec.fault is Fault.STOP:
        signal.pthread_kill(
            threading.get_ident(), signal.SIGSTOP
        )  # this thread may continue for a moment after `os.kill`
    elif spec.fault is Fault.HANG_C:
        ctypes.PyDLL(None).sleep(1 << 20)  # PyDLL, unlike CDLL, does not release the interpreter's lock
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
