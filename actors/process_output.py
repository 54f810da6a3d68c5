"""Reads the last output of a process that has ended. It reads only files, and needs no running process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LINES, BYTES = 20, 8192
"""Bytes that are read of each file: enough for the end of a traceback, and short enough for a message."""


class LastWords:
    """The files to which a process of this machine writes its output and errors. Call `read` when it has ended."""

    def __init__(self, files: Mapping[str, Path | None]) -> None:
        self._files = files

    @classmethod
    def of(cls, pid: int) -> LastWords:
        """The files of a running process."""
        return cls({stream: _target(pid, number) for stream, number in (("stderr", 2), ("stdout", 1))})

    @classmethod
    def in_folder(cls, logs: Path, pid: int) -> LastWords:
        """The files of a worker of Ray that may have ended, by the names that Ray gives them."""
        kinds = (("stderr", "err"), ("stdout", "out"))
        return cls({stream: next(logs.glob(f"worker-*-{pid}.{ending}"), None) for stream, ending in kinds})

    def read(self) -> str:
        """The last lines of each stream under the stream's name; "" if nothing was written."""
        tails = {stream: _tail(path) for stream, path in self._files.items() if path is not None}
        return "\n".join(f"{stream}:\n{text}" for stream, text in tails.items() if text)


def _target(pid: int, number: int) -> Path | None:
    """The file behind a descriptor; None if it is no regular file, or the process has ended."""
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
    except FileNotFoundError:  # the folder of Ray's logs was removed first
        return ""
    return "\n".join(line for line in lines[-LINES:] if not line.startswith(":"))  # `:actor_name:` is Ray's
