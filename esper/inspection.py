"""What a run directory says about its run, read without a lock, also while the run goes on. It imports no task."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esper.errors import RunDirectoryError, StoreCorrupt
from esper.journal import Entry, Kind, read
from esper.run_directory import LEASE, journal_file, run_file
from esper.summary import Identity


def inspect_run(path: Path) -> dict[str, Any]:
    """State, place and seeds of a run: what `esper inspect --json` prints.

    Raises:
        RunDirectoryError: the directory holds no run.
        StoreCorrupt: its journal is no journal.
    """
    identity = load_identity(path)
    entries, errors = read(journal_file(path, identity.generation))
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
        "train_loss": rounds[-1]["train_loss"] if rounds else None,
        "damaged_records": len(errors),
    }


def load_identity(path: Path) -> Identity:
    """What `run.json` says.

    Raises:
        RunDirectoryError: there is none, or it is not one of ours.
    """
    file = run_file(path)
    if not file.is_file():
        raise RunDirectoryError("RUN", str(path), "no run is here (there is no run.json)")
    try:
        return Identity.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise StoreCorrupt(str(file), f"not a run.json of this version: {error.errors()[0]['msg']}") from error


def _state(path: Path, entries: list[Entry]) -> str:
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


def _seeds(entries: list[Entry]) -> list[dict[str, Any]]:
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
