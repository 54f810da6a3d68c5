"""Finds what a drill leaves behind on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import ray

from esper.ground.machine import is_alive

PLACES = (Path("/dev/shm"), Path("/tmp"))
OURS = "esper-"
"""Prefix of the folders and shared-memory files that esper makes."""
IDLE = ("ray::IDLE", "ray::SPILL", "ray::RESTORE")
"""Titles of Ray's own workers, which wait for work."""


@dataclass(frozen=True)
class Footprint:
    """Processes, actors and folders of esper at one moment."""

    processes: frozenset[tuple[int, str]]
    actors: frozenset[str]
    folders: frozenset[str]

    @classmethod
    def now(cls) -> Self:
        """Look at this machine: descendants of this process that execute an actor or esper, named actors, folders."""
        return cls(frozenset(_working()), frozenset(_actors()), frozenset(_folders()))

    def since(self, before: Footprint) -> tuple[str, ...]:
        """Return a line for each thing that was not there `before`, and still is."""
        processes = [f"process {pid} {title}" for pid, title in self.processes - before.processes if is_alive(pid)]
        actors = [f"actor {name}" for name in self.actors - before.actors]
        return tuple(sorted([*processes, *actors, *(f"folder {name}" for name in self.folders - before.folders)]))


def _working() -> list[tuple[int, str]]:
    children: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and (parent := _parent(place)) is not None:
            children.setdefault(parent, []).append(int(place.name))
    found, open_ = list[int](), [os.getpid()]
    while open_:
        below = children.get(open_.pop(), [])
        found += below
        open_ += below
    titles = [(pid, _title(pid)) for pid in found]
    return [(pid, title) for pid, title in titles if _works(title)]


def _works(title: str) -> bool:
    return (title.startswith("ray::") and not title.startswith(IDLE)) or " -m esper " in title


def _parent(place: Path) -> int | None:
    try:
        return int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # the process has ended
        return None


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # the process has ended
        return ""


def _actors() -> list[str]:
    return [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)] if ray.is_initialized() else []


def _folders() -> list[str]:
    return [str(found) for place in PLACES for found in place.glob(f"{OURS}*")]
