"""Lets writes of this process to files of its run fail as a disk does, or damages what they write."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from esper.durable.files import set_write_trap
from esper.faults.fault_spec import Fault

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
"""Name of the temporary file from which an atomic write makes the file NAME."""


@dataclass(frozen=True)
class Plan:
    """One write that shall be broken."""

    fault: Fault
    file: str
    """Pattern of the path in the run directory."""
    claim: Callable[[], bool]
    """Records the firing. False: the fault must not fire."""


@dataclass
class BrokenDisk:
    """The writes of this process that shall be broken. Any thread may call it."""

    root: Path | None = None
    """The run directory. None: files in any folder match."""
    _plans: list[Plan] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, plan: Plan) -> None:
        """Break the next write to a file that matches."""
        with self._lock:
            self._plans.append(plan)
        set_write_trap(self.write)

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write as `Disk.write`, or break the write."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        plan = self._due(path)
        if plan is None or not plan.claim():
            return os.pwrite(descriptor, data, offset)
        half = data[: len(data) // 2]
        if plan.fault is Fault.IO_ERROR:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        if plan.fault is Fault.BIT_FLIP:
            flipped = bytearray(data)
            flipped[len(data) // 2] ^= 1
            return os.pwrite(descriptor, flipped, offset)
        os.pwrite(descriptor, half, offset)
        if plan.fault is Fault.NO_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return len(data)  # truncated: the disk reports more than it wrote

    def _due(self, path: Path) -> Plan | None:
        """Take the first plan that matches a file."""
        name = self._name(path)
        with self._lock:
            due = next((plan for plan in self._plans if name is not None and fnmatchcase(name, plan.file)), None)
            if due is not None:
                self._plans.remove(due)
            if not self._plans:
                set_write_trap(None)
        return due

    def _name(self, path: Path) -> str | None:
        """Return the path in the run directory, with the final name of the file. None: it is outside."""
        temporary = _TEMPORARY.fullmatch(path.name)
        path = path.with_name(temporary[1]) if temporary else path
        if self.root is None:
            return str(path)
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else None
