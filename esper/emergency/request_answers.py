"""The answers to requests in the inbox. The folder `taken/` has the requests that were carried out, and `refused/` has
the reasons of refusals.

A file in one of these folders is only for the sender of the request; the queue has its own records. So an answer that
cannot be written is a severe event and never stops the run.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from esper.durable.files import atomic_write, make_folders
from esper.errors import StoreWriteFailed
from esper.telemetry.events import Severity, severe

MOST_ANSWERS = 1000
"""Largest number of files in the folder; the oldest are removed."""
_MOST_NAMES = 10_000
"""For one answer, at most this number of names in the folder are read."""


class Answers:
    """One folder of answers. It is made again if it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: deque[str] = deque(maxlen=MOST_ANSWERS)
        """Names of the answers of this process, the oldest first. The times of the files do not show this order,
        because clocks may jump."""

    def write(self, name: str, content: bytes) -> None:
        """Write an answer. It is durable on return, unless a severe event was reported."""
        self._add(name, lambda path: atomic_write(path, content))

    def move_here(self, request: Path, name: str) -> None:
        """Move the file of a request to the answers. If this fails, the file stays in the inbox, and a severe event is
        reported.
        """
        self._add(name, lambda path: os.rename(request, path))

    def _add(self, name: str, place: Callable[[Path], None]) -> None:
        try:
            make_folders(self._folder)
            self._forget_oldest()
            place(self._folder / name)
        except (OSError, StoreWriteFailed) as error:
            severe("emergency_answer_lost", Severity.ERROR, file=str(self._folder / name), why=str(error))
        else:
            self._written.append(name)

    def _forget_oldest(self) -> None:
        """Remove files so that there is room for one more: first answers of earlier processes, then the oldest answers.

        Raises: OSError: the system refused, or the folder is a link. In the second case its files may not be answers.
        """
        if self._folder.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link")
        with os.scandir(self._folder) as entries:
            found = {entry.name for entry in islice(entries, _MOST_NAMES) if entry.is_file(follow_symlinks=False)}
        own = [name for name in self._written if name in found]
        for name in [*sorted(found.difference(own)), *own][: max(0, len(found) - MOST_ANSWERS + 1)]:
            (self._folder / name).unlink(missing_ok=True)
