"""Reads the last output of a process that has ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LINES, BYTES = 20, 8192
"""Largest numbers of lines and of bytes that are read from the end of a file. These are enough for the end of a
traceback."""
WITHOUT_WORDS = (
    "wrote nothing before its end, not even a traceback: a signal killed it, as the system's memory killer (see dmesg) "
    "and `kill -9` do, or it called os._exit"
)
"""What is said of a process that ended without output."""


class LastWords:
    """The files of the output and the errors of a process on this machine. Call `read` after its end."""

    def __init__(self, files: Mapping[str, Path | None]) -> None:
        self._files = files

    @classmethod
    def of(cls, pid: int) -> LastWords:
        """Return the files of a running process."""
        return cls({stream: _target(pid, number) for stream, number in (("stderr", 2), ("stdout", 1))})

    @classmethod
    def in_folder(cls, logs: Path, pid: int) -> LastWords:
        """Return the files of a worker of Ray.

        The worker may have ended already, because its files are found by name.
        """
        kinds = (("stderr", "err"), ("stdout", "out"))
        return cls({stream: next(logs.glob(f"worker-*-{pid}.{ending}"), None) for stream, ending in kinds})

    def read(self) -> str:
        """Return the last lines of each stream, below the stream's name. "": nothing was written."""
        tails = {stream: _tail(path) for stream, path in self._files.items() if path is not None}
        return "\n".join(f"{stream}:\n{text}" for stream, text in tails.items() if text)


def _target(pid: int, number: int) -> Path | None:
    """Return the file of a descriptor. None: it is not a regular file, or the process has ended."""
    try:
        path = Path(os.readlink(f"/proc/{pid}/fd/{number}"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return path if path.is_file() else None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:  # the folder of Ray's logs was removed
        return ""
    return "\n".join(line for line in lines[-LINES:] if not line.startswith(":"))  # these lines were written by Ray
