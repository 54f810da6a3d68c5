"""Ends the processes that use a folder, for example the processes of a Ray after an interrupted start."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

END_WITHIN_S = 2.0
"""Longest wait for the end of killed processes, in seconds. They usually end within milliseconds."""


def end_users_of(folder: Path) -> None:
    """Kill the processes of this session that use a folder. Wait at most `END_WITHIN_S` for their ends.

    Without this function, processes of Ray end about a minute after the end of their Ray.
    """
    limit = time.monotonic() + END_WITHIN_S
    while (users := [pid for pid in _processes() if _uses(pid, folder)]) and time.monotonic() < limit:
        for pid in users:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _processes() -> list[int]:
    return [
        int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit() and place.name != str(os.getpid())
    ]


def _uses(pid: int, folder: Path) -> bool:
    """Return whether a process of this session has the folder in its command line, or an open file in the folder.

    The open files are checked, because Ray's agents replace their command line by a title. The command line is checked,
    because a new agent has no open log yet.
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
    """Return the file of a descriptor. The path is empty if the descriptor was closed meanwhile."""
    try:
        return Path(os.readlink(link))
    except FileNotFoundError:
        return Path()
