"""Temporary folders outside the run directory. Each belongs to one process.

If the process is killed, a later process removes the folder. A file in the folder names the process. The folder is
removed only if it is certain that this process has ended. The file must contain the user, boot and process namespace of
the present process. No running process may have the id and the start time in the file.
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
"""The path must be short, because the path of a socket may have at most 107 bytes, and Ray adds about 70."""
NAME = re.compile(r"esper-(ray|word)-[0-9]+-[0-9a-f]{8}")


def make_place(kind: str, parent: Path) -> Path:
    """Make a folder for this process. Only this user can enter it. Raises: OSError: the folder cannot be made."""
    folder = parent / f"esper-{kind}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    (folder / OWNER).write_text(_mark(os.getpid(), process_began(os.getpid())))
    return folder


def sweep(*parents: Path) -> tuple[Path, ...]:
    """Remove the folders of processes that were killed. Return the removed folders.

    A folder that cannot be read or removed stays, because it may belong to another user.
    """
    left = [place for parent in parents if parent.is_dir() for place in parent.iterdir() if _is_left(place)]
    for place in left:
        shutil.rmtree(place, ignore_errors=True)
    return tuple(place for place in left if not place.exists())


def _is_left(place: Path) -> bool:
    """Return whether `make_place` made the folder, for this user and for a process that has ended."""
    if not NAME.fullmatch(place.name) or place.is_symlink():
        return False
    try:
        if place.stat().st_uid != os.getuid():
            return False
        mark = (place / OWNER).read_text()
    except OSError:  # the folder is being removed, or has no mark yet
        return False
    pid = mark.partition(" ")[0]
    if not re.fullmatch(r"[0-9]{1,9}", pid):
        return False
    return mark != _mark(int(pid), process_began(int(pid))) and mark.split()[2:] == _here()


def _mark(pid: int, began_ticks: int | None) -> str:
    """Return the id and start time of a process, with the boot and the namespace in which they are unique."""
    return " ".join([str(pid), str(began_ticks), *_here()])


def _here() -> list[str]:
    """Return the id of this boot of the machine, and the id of this process namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [boot, os.readlink("/proc/self/ns/pid")]
