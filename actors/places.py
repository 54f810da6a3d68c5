"""Folders of ours outside the run directory: made for one process alone, and removed by a later one if it was killed.

Each holds a file that names its process. It is removed only where that process has surely ended: same user, same boot,
same process namespace, and no process of this id that began then.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from esper.ground.machine import process_began

OWNER = "owner"
SHARED_MEMORY = Path("/dev/shm")
TEMPORARY = Path("/tmp")
"""Short: paths of Ray's sockets end at 107 bytes."""
NAME = re.compile(r"esper-(ray|word)-[0-9]+-[0-9a-f]{8}")


def make_place(kind: str, parent: Path) -> Path:
    """A new folder that only this user can enter, marked as this process's. Raises: OSError: the system refused."""
    folder = parent / f"esper-{kind}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    (folder / OWNER).write_text(_mark(os.getpid(), process_began(os.getpid())))
    return folder


def sweep(*parents: Path) -> tuple[Path, ...]:
    """Remove the folders that processes left which were killed. Returns those that are gone.

    What cannot be looked at or removed stays: it may be another user's.
    """
    left = [place for parent in parents if parent.is_dir() for place in parent.iterdir() if _is_left(place)]
    for place in left:
        shutil.rmtree(place, ignore_errors=True)
    return tuple(place for place in left if not place.exists())


def _is_left(place: Path) -> bool:
    """Made by `make_place`, by this user, for a process that has ended."""
    if not NAME.fullmatch(place.name) or place.is_symlink():
        return False
    try:
        if place.stat().st_uid != os.getuid():
            return False
        said = (place / OWNER).read_text()
    except OSError:  # it goes this very moment, or has no mark yet
        return False
    pid = said.partition(" ")[0]
    if not re.fullmatch(r"[0-9]{1,9}", pid):
        return False
    return said != _mark(int(pid), process_began(int(pid))) and said.split()[2:] == _here()


def _mark(pid: int, began_ticks: int | None) -> str:
    """The id of a process, when it began, and where both mean something."""
    return " ".join([str(pid), str(began_ticks), *_here()])


def _here() -> list[str]:
    """This boot of the machine and this namespace of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [boot, os.readlink("/proc/self/ns/pid")]
