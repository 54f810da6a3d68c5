"""What a run directory says about its run, read without a lock, also while the run goes on. It imports no task."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.history import read_past
from esper.journal import Entry, Kind
from esper.run_directory import LEASE


def inspect_run(path: Path) -> dict[str, Any]:
    """State, place and seeds of a run: what `esper inspect --json` prints.

    Raises:
        RunDirectoryError: the directory holds no run.
        StoreCorrupt: its journal is no journal.
    """
    past = read_past(path)
    identity, entries = past.identity, past.entries
    rounds = [entry.body for entry in entries if entry.kind is Kind.ROUND_ENDED]
    return {
        "run_dir": str(path),
        "state": _state(path, entries),
        "fence": rounds[-1]["fence"] if rounds else 0,
        "steps": rounds[-1]["step"] if rounds else 0,
        "total_steps": identity.total_steps,
        "seeds": _seeds(entries),
        "level": None,
        "task": identity.task,
        "seed": identity.config.run.seed,
        "generation": past.generation,
        "checkpoints": [written.fence for written in past.commits],
        "train_loss": rounds[-1]["train_loss"] if rounds else None,
        "damaged_records": len(past.errors),
    }


def _state(path: Path, entries: Sequence[Entry]) -> str:
    """finished, failed, interrupted, running, stopped (its process is gone), or open (its process is elsewhere)."""
    for entry in reversed(entries):
        if entry.kind is Kind.RUN_ENDED:
            return "finished"
        if entry.kind is Kind.RUN_FAILED:
            return "interrupted" if entry.body["error"] == "KeyboardInterrupt" else "failed"
    lease = path / LEASE
    holder = re.match(r"pid (\d+) on (.+)", lease.read_text()) if lease.is_file() else None
    if holder is None:
        return "stopped"
    if holder[2] != socket.gethostname():
        return "open"
    return "running" if _alive(int(holder[1])) else "stopped"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process: it is there
        return True
    return True


def _seeds(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    seeds: dict[str, dict[str, Any]] = {}
    for entry in entries:
        body = entry.body
        if entry.kind is Kind.TRANSITION:
            seed = seeds.setdefault(body["seed_id"], {"seed_id": body["seed_id"], "gain": None, "z": None})
            seed |= {"slot": body["slot"], "blueprint": body["blueprint_id"], "stage": body["after"]}
        elif entry.kind is Kind.INCUBATION_ENDED:
            for fork in body["forks"]:
                gate = fork["gate"]
                if gate is not None and fork["seed_id"] in seeds:
                    seeds[fork["seed_id"]] |= {"gain": gate["mean"] / gate["control_mean"], "z": gate["z"]}
    return list(seeds.values())
