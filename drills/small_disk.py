"""A small file system of its own for a run directory, and a file that fills it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.errors import DrillImpossible
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.leyline.state import RoundState
from esper.setup.survey import Survey

SIZE = "64m"
FILLER = "filler"
BLOCK_BYTES = 4096


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small file system on a new folder. When the block ends, its files are copied, and the copies take its
    place.

    Raises:
        DrillImpossible: this process may not mount a file system.
    """
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        folder.rmdir()
        raise DrillImpossible(f"this process may not mount a small file system: {done.stderr.strip()}")
    copy = folder.with_name(f"{folder.name}-copy")
    try:
        yield
        shutil.copytree(folder, copy)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
    copy.rename(folder)


class FillsDisk(Quiet):
    """Progress of a run that fills the file system of its directory at a fence, to the last block."""

    def __init__(self, fence: int) -> None:
        self._fence = fence
        self._path = Path()

    def started(self, survey: Survey, path: Path) -> None:
        """Keep the directory of the run."""
        del survey
        self._path = path

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Fill it."""
        del tally
        if state.fence == self._fence:
            fill(self._path / FILLER)


def fill(file: Path) -> None:
    """Make a file that takes all blocks that are free."""
    with file.open("wb", buffering=0) as filler:
        for size in (2**20, BLOCK_BYTES):
            full = False
            while not full:
                try:
                    os.write(filler.fileno(), bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    full = True
