"""Ends the processes that use a folder, for example those of a Ray whose start was interrupted."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

END_WITHIN_S = 2.0
"""A killed process is gone within milliseconds. The bound is for a folder that another program still uses."""


def end_users_of(folder: Path) -> None:
    """Kill the processes of this session that use a folder, and wait until none is left, at most `END_WITHIN_S`.

    Processes of Ray end without this when they notice that their Ray is gone, which can take a minute.
    """
    limit = time.monotonic() + END_WITHIN_S
    while (users := [pid for pid in _processes() if _uses(pid, folder)]) and time.monotonic() < limit:
        for pid in users:
            with suppress(ProcessLookupError):  # the process ended by itself
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes() -> list[int]:
    return [
        int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit() and place.name != str(os.getpid())
    ]


def _uses(pid: int, folder: Path) -> bool:
    """Whether a process of this session has the folder in its command line, or has a file of the folder open.

    Both are needed: Ray's agents replace their command line by a title, but only after they have opened their logs.
    """
    place = Path(f"/proc/{pid}")
    try:
        if os.getsid(pid) != os.getsid(0):
            return False
        return os.fsencode(folder) in (place / "cmdline").read_bytes() or any(
            _opened(link).is_relative_to(folder) for link in (place / "fd").iterdir()
        )
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is another user's
        return False


def _opened(link: Path) -> Path:
    """The file behind a descriptor; the empty path if it was closed meanwhile."""
    try:
        return Path(os.readlink(link))
    except FileNotFoundError:
        return Path()
