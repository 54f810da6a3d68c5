"""Finds the files of a telemetry folder and yields their lines. No file can block it or fill the memory.

The folder may come from a stranger, and other processes may append to its files meanwhile. A part that is not read is
counted in `Skipped`, so that a reader sees how complete the result is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from esper.errors import RunDirectoryError
from esper.ground.workplace import shown

FOLDER = "telemetry"
"""Name of the folder in a run directory."""
PREFIX, SUFFIX = "spans-", ".jsonl"
EVENTS = "severe-events.jsonl"

TORN = "incomplete last line"
TOO_LONG = "line longer than the limit"


@dataclass(frozen=True)
class Limits:
    """Bounds of one reading. With these values it takes at most about a minute and 1 GiB of memory."""

    files: int = 10_000
    bytes: int = 1 << 30
    """Bytes of all files together. The last part of a longer file is read, because it is the newest."""
    line_bytes: int = 4 << 20
    spans: int = 500_000
    detailed_spans: int = 200_000
    """Spans that are read with their attributes and events."""


LIMITS = Limits()


@dataclass
class Skipped:
    """The parts of a folder that were not read: the file and the reason of each, with a count."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, file: str, reason: str, count: int = 1) -> None:
        self.counts[file, reason] += count

    def total(self, reason: str) -> int:
        """Return the count of one reason in all files."""
        return sum(count for (_, why), count in self.counts.items() if why == reason)

    def as_json(self) -> list[dict[str, str | int]]:
        """Return a list of `file`, `reason` and `count`."""
        return [{"file": file, "reason": reason, "count": count} for (file, reason), count in self.counts.items()]

    def sentences(self) -> list[str]:
        """Return a line for each file and reason."""
        return [f"not read: {file}: {reason} ({count:,})" for (file, reason), count in self.counts.items()]


def telemetry_of(run_dir: Path) -> Path:
    """Return the telemetry folder of a run directory.

    Raises:
        RunDirectoryError: the run directory has no such folder, or it cannot be listed.
    """
    folder = run_dir / FOLDER
    try:
        with os.scandir(folder):
            return folder
    except FileNotFoundError as error:
        what = "no telemetry is here (there is no folder telemetry); with telemetry.enabled=false a run writes none"
        raise RunDirectoryError("RUN", shown(run_dir), what) from error
    except NotADirectoryError as error:
        raise RunDirectoryError("RUN", shown(run_dir), "telemetry has to be a folder") from error
    except (OSError, ValueError) as error:  # ValueError: the path has a NUL byte
        raise RunDirectoryError("RUN", shown(run_dir), f"telemetry cannot be read: {error}") from error


def has_spans(run_dir: Path) -> bool:
    """Return whether a run directory has a span file. False also for a run that sends its spans elsewhere."""
    return any((run_dir / FOLDER).glob(f"{PREFIX}*{SUFFIX}"))


def lines_of(folder: Path, skipped: Skipped, limits: Limits = LIMITS) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, line) of each span file of a folder; for the lines see `lines`."""
    sizes = {name: size for name in _names(folder, skipped, limits) if (size := _size(folder / name, skipped))}
    for name, first in _shared(sizes, limits.bytes, skipped).items():
        if (file := open_regular(folder / name, skipped)) is not None:
            with file:
                for line in lines(file, name, first, skipped, limits):
                    yield name, line


def _names(folder: Path, skipped: Skipped, limits: Limits) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as entries:
        for seen, entry in enumerate(entries):
            if seen >= limits.files:
                skipped.add(folder.name, f"files after the first {limits.files:,} in the folder")
                break
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX):
                names.append(entry.name)
    return sorted(names)


def _size(path: Path, skipped: Skipped) -> int:
    file = open_regular(path, skipped)
    if file is None:
        return 0
    with file:
        return os.fstat(file.fileno()).st_size


def open_regular(path: Path, skipped: Skipped) -> BinaryIO | None:
    """Open a regular file. Return None for any other file, such as a named pipe or a symbolic link, and count it."""
    try:
        # without O_NONBLOCK the opening of a named pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        link = error.errno == errno.ELOOP
        skipped.add(path.name, "it is a symbolic link" if link else f"cannot be opened: {error.strerror}")
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        skipped.add(path.name, "it is no regular file")
        return None
    return open(descriptor, "rb", buffering=1 << 18)


def _shared(sizes: Mapping[str, int], total_bytes: int, skipped: Skipped) -> dict[str, int]:
    """Return the first byte to read of each file. Small files are read whole. The large files share the rest."""
    first: dict[str, int] = {}
    rest = total_bytes
    for place, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        share = min(size, rest // (len(sizes) - place))
        rest -= share
        first[name] = size - share
        if share < size:
            skipped.add(name, "bytes at its beginning, beyond the limit of one reading", size - share)
    return {name: first[name] for name in sizes}


def lines(file: BinaryIO, name: str, first: int, skipped: Skipped, limits: Limits = LIMITS) -> Iterator[bytes]:
    """Yield the lines of a file from byte `first` to its present end, with their line feeds.

    If the last line has no line feed, its writer is at work or was killed. That line may be incomplete.
    """
    try:
        left = os.fstat(file.fileno()).st_size - first
        file.seek(first)
        if first:
            left -= _skip_line(file, left)
        while left > 0:
            line = file.readline(min(left, limits.line_bytes + 1))
            if not line:
                return
            left -= len(line)
            if len(line) > limits.line_bytes:
                skipped.add(name, TOO_LONG)
                left -= 0 if line.endswith(b"\n") else _skip_line(file, left)
            elif not line.isspace():
                yield line
    except OSError as error:
        skipped.add(name, f"cannot be read further: {error.strerror}")


def _skip_line(file: BinaryIO, most: int) -> int:
    """Read to the end of the line and return the number of bytes, at most `most`."""
    done = 0
    while done < most:
        part = file.readline(min(most - done, 1 << 20))
        done += len(part)
        if not part or part.endswith(b"\n"):
            break
    return done
