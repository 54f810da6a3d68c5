"""What a process wrote last, read when it is gone. It knows where the process writes, and nothing of what it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LINES, BYTES = 20, 8192


class LastWords:
    """The files that a process of this machine writes its output and errors to; look at them once it is gone."""

    def __init__(self, files: Mapping[str, Path | None]) -> None:
        self._files = files

    @classmethod
    def of(cls, pid: int) -> LastWords:
        """Of a process that is there."""
        return cls({stream: _target(pid, number) for stream, number in (("stderr", 2), ("stdout", 1))})

    @classmethod
    def in_folder(cls, logs: Path, pid: int) -> LastWords:
        """Of a worker that is gone, by the names that Ray gives its files."""
        kinds = (("stderr", "err"), ("stdout", "out"))
        return cls({stream: next(logs.glob(f"worker-*-{pid}.{ending}"), None) for stream, ending in kinds})

    def read(self) -> str:
        """The last lines of each stream that has any, under its name; "" where there are none."""
        told = {stream: _tail(path) for stream, path in self._files.items() if path is not None}
        return "\n".join(f"{stream}:\n{text}" for stream, text in told.items() if text)


def _target(pid: int, number: int) -> Path | None:
    """The regular file behind a descriptor; None where it is no such thing, or the process has ended."""
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
    except FileNotFoundError:  # its folder went first
        return ""
    return "\n".join(line for line in lines[-LINES:] if not line.startswith(":"))  # Ray marks owners so: `:actor_name:`
