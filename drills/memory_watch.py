"""Measures the largest memory of a drill: this process and all its descendants, several times a second."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from drills.leaks import descendants
from esper.ground.closing import Closing

EVERY_S = 0.2
PAGE = os.sysconf("SC_PAGE_SIZE")


class MemoryWatch(Closing):
    """Samples memory until it is closed. `peak_bytes` is then final."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        """Largest sum of the private resident memory of all processes. Files and shared memory do not count."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="drill-memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the last sample, and end the thread."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(_private_bytes, (os.getpid(), *descendants()))))
            if self._ended.wait(EVERY_S):
                return


def _private_bytes(pid: int) -> int:
    """Return the resident memory of a process without its shared pages. 0: the process has ended."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * PAGE
