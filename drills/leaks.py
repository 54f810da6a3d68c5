"""Finds what a drill leaves behind on this machine."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import ray

from actors.ray_private import AGENTS, RAYLET
from esper.ground.machine import is_alive

PLACES = (Path("/dev/shm"), Path("/tmp"))
OURS = re.compile(r"esper-[a-z]+-([0-9]+)-[0-9a-f]+")
"""Names of the folders that esper makes outside a run directory, with the id of the process that made them."""
ENDING_S = 20.0
"""Longest wait in seconds for the end of killed processes."""
AGENTS_S = 600.0
"""Longest wait in seconds for the end of agents without their raylet. An agent ends by itself after its raylet, when it
has tried for about a minute to tell Ray's control store. On a busy machine this takes longer.
"""
MARK = "ESPER_DRILL_OF"
"""Environment variable of the commands of a drill, and of all processes that they start. Its value is the id of the
process that runs the drill. By it, processes are found that have lost their parent."""
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
        """Look at this machine: descendants that work, all processes of commands, actors, folders."""
        titles = {pid: _title(pid) for pid in descendants()}
        working = frozenset((pid, title) for pid, title in titles.items() if _works(title))
        working |= frozenset((pid, _title(pid)) for pid in _marked())
        return cls(working, frozenset(_actors()), frozenset(_folders({os.getpid(), *titles})))

    def since(self, before: Footprint) -> tuple[str, ...]:
        """Return a line for each thing that was not there `before`, and still is."""
        processes = [f"process {pid} {title}" for pid, title in self._new(before)]
        actors = [f"actor {name}" for name in self.actors - before.actors]
        return tuple(sorted([*processes, *actors, *(f"folder {name}" for name in self.folders - before.folders)]))

    def only_agents_since(self, before: Footprint) -> bool:
        """Return whether nothing is left since `before` but agents of Ray whose raylet has ended."""
        others = (self.actors - before.actors) | (self.folders - before.folders)
        return not others and all(_is_orphaned_agent(pid, title) for pid, title in self._new(before))

    def _new(self, before: Footprint) -> list[tuple[int, str]]:
        return [(pid, title) for pid, title in self.processes - before.processes if is_alive(pid)]


def settled(before: Footprint) -> tuple[str, ...]:
    """Return what is left since `before`, when nothing is left, or what is left has had its time to end."""
    began = time.monotonic()
    while left := (now := Footprint.now()).since(before):
        limit_s = AGENTS_S if now.only_agents_since(before) else ENDING_S
        if time.monotonic() - began >= limit_s:
            break
        time.sleep(0.05)
    return left


def descendants() -> list[int]:
    children: defaultdict[int, list[int]] = defaultdict(list)
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and (parent := _parent(place)) is not None:
            children[parent].append(int(place.name))
    found, unseen = list[int](), [os.getpid()]
    while unseen:
        below = children[unseen.pop()]
        found += below
        unseen += below
    return found


def _marked() -> list[int]:
    """Return the processes of the commands of this process's drills."""
    mark = f"{MARK}={os.getpid()}".encode()
    pids = (int(place.name) for place in Path("/proc").iterdir() if place.name.isdigit())
    return [pid for pid in pids if mark in _environment(pid)]


def _is_orphaned_agent(pid: int, title: str) -> bool:
    """Return whether a process is an agent of Ray, and its raylet has ended. Then another process is its parent."""
    parent = _parent(Path(f"/proc/{pid}"))
    return title.startswith(AGENTS) and parent is not None and not _title(parent).split(" ")[0].endswith(RAYLET)


def _environment(pid: int) -> list[bytes]:
    """Return the variables with which a process began. Empty: it has ended, or is another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _works(title: str) -> bool:
    return (title.startswith("ray::") and not title.startswith(IDLE)) or " -m esper " in title


def _parent(place: Path) -> int | None:
    try:
        return int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):  # the process has ended
        return None


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("latin-1").strip()
    except OSError:  # the process has ended
        return ""


def _actors() -> list[str]:
    return [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)] if ray.is_initialized() else []


def _folders(pids: Collection[int]) -> list[str]:
    found = ((place, OURS.fullmatch(place.name)) for parent in PLACES for place in parent.iterdir())
    return [str(place) for place, name in found if name and int(name[1]) in pids]
