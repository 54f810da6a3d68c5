"""The record of the faults that fired."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from esper.durable.files import read_small
from esper.errors import StoreCorrupt, StoreWriteFailed
from esper.faults.fault_spec import Fault, FaultSpec
from esper.telemetry.file_exporter import open_for_append


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


def missed(specs: Sequence[FaultSpec], fired: Sequence[Firing]) -> tuple[str, ...]:
    """Return a line for each fault of a run that fired less often than its `times`."""
    counts = [sum(one.fault_index == index for one in fired) for index in range(len(specs))]
    return tuple(
        f"fault {number}, {spec.fault} at {spec.point}: fired {count} of {spec.times} times"
        for number, (spec, count) in enumerate(zip(specs, counts, strict=True), 1)
        if count < spec.times
    )
