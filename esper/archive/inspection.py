"""Reads the state of a run from its directory, without a lock. The run may be in progress. No task is imported."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from esper.archive.history import Remains, last_halt, level_history, look_at
from esper.archive.journal import Entry, RecordKind
from esper.archive.run_directory import LEASE, checkpoints_folder, journals, metrics_file, quarantined
from esper.emergency.settings import EmergencyConfig
from esper.ground.machine import is_alive
from esper.leyline.base import Message
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.leyline.evidence import PairedLosses
from esper.leyline.reports import Gate, GateReport
from esper.leyline.signals import Level
from esper.setup.verdicts import verdict_of

MOST_BYTES = 4096
"""Largest number of bytes of the file with the address of the endpoint for Prometheus."""


class Endpoint(Message):
    """The content of that file."""

    url: Annotated[str, Field(pattern=r"^http://[!-~]{1,300}$")]


AT_THE_END = ("start_test_loss", "test_loss", "twin_test_loss", "why_none_stayed", "ends_with", "finish")
"""Names of the fields of the result. Their values are None until the run has ended."""


def inspect_run(path: Path) -> dict[str, Any]:
    """Return the state of a run, its fence and its seeds, as `esper inspect --json` prints them.

    For a damaged run, values that cannot be read are None, and `damages` has each unreadable place.

    Raises:
        RunDirectoryError: the directory has no file of a run.
    """
    found = look_at(path)
    identity, entries = found.identity, found.entries
    rounds = [entry.body for entry in entries if entry.kind is RecordKind.ROUND_ENDED]
    begun = {"fence": None, "step": None} if found.damaged else {"fence": 0, "step": 0}
    ended = next((entry.body for entry in entries if entry.kind is RecordKind.RUN_ENDED), {})
    last = rounds[-1] if rounds else begun | {"train_loss": None}
    state = _state(path, found)
    return {
        "run_dir": str(path),
        "state": state,
        "prometheus": _metrics_url(path) if state == "running" else None,
        "fence": last["fence"],
        "steps": last["step"],
        "total_steps": identity.total_steps if identity is not None else None,
        "seeds": _seeds(entries),
        "level": _level(found, last["fence"]),
        "task": identity.task if identity is not None else None,
        "seed": identity.config.run.seed if identity is not None else None,
        "generation": found.generation,
        "rollbacks": found.rollbacks,
        "checkpoints": [written.fence for written in found.commits],
        "missing_checkpoints": missing(path, found.commits),
        "quarantined_checkpoints": quarantined(path),
        "train_loss": last["train_loss"],
        **{name: ended.get(name) for name in AT_THE_END},
        "damaged": found.damaged,
        "damages": [asdict(damage) for damage in found.damages],
        "damaged_records": sum(damage.offset is not None for damage in found.damages),
    }


def _metrics_url(path: Path) -> str | None:
    """Return the address of the endpoint for Prometheus. None: the run has no endpoint, or its file is damaged."""
    try:
        with metrics_file(path).open("rb") as file:
            url = Endpoint.model_validate_json(file.read(MOST_BYTES)).url
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    return url


def _level(found: Remains, fence: int | None) -> str | None:
    """Return the name of the emergency level at a fence. It is HALT if a HALT stopped the run and no resume
    followed.
    """
    if last_halt(found.entries) is not None:
        return Level.HALT.name
    settings = found.identity.config.emergency if found.identity is not None else EmergencyConfig()
    level = level_history(found.entries, settings.calm_fences).at(fence or 0)
    return level.name if level is not None else None


def missing(path: Path, commits: Sequence[CheckpointWritten]) -> list[str]:
    """Return the files of valid checkpoints that are missing."""
    gone = still_kept(path, {one.file for one in commits if not (checkpoints_folder(path) / one.file).exists()})
    return [one.file for one in commits if one.file in gone]


def still_kept(path: Path, files: set[str]) -> set[str]:
    """Return the files that still belong to valid checkpoints. The run may have dropped some checkpoints since `files`
    was read.
    """
    return files & {written.file for written in look_at(path).commits} if files else files


STOPPED_BY = {"KeyboardInterrupt": "interrupted", "Drained": "drained", "EmergencyStop": "halted"}
"""The shown state of a run that ended on request, by the class of the error that ended it."""


def failure_of_run(path: Path) -> dict[str, Any] | None:
    """Return the record of the error that ended a run: error, message, cause, notes, trace_id, fence.

    None: the run has ended in another way, is in progress, or is not known to have failed, because its directory has no
    journal that can be read.

    Raises:
        RunDirectoryError: the system refuses to read the directory.
    """
    if not journals(path):  # the telemetry of a run may be copied without the rest
        return None
    found = look_at(path)
    ends = (RecordKind.RUN_ENDED, RecordKind.RUN_FAILED, RecordKind.SUPERSEDED)
    last = next((entry for entry in reversed(found.entries) if entry.kind in ends), None)
    if found.newest_lost or last is None or last.kind is not RecordKind.RUN_FAILED:
        return None
    return {name: last.body[name] for name in ("error", "message", "cause", "notes", "trace_id", "fence")}


def _state(path: Path, found: Remains) -> str:
    """Return one of finished, failed, interrupted, drained, halted, running, stopped, open, unknown.

    "stopped": the process of the run ended without a record of its end. "open": the process is on another machine, so
    its state is not known. "unknown": the process has ended, and the journal with the record of its end is lost.
    """
    for entry in () if found.newest_lost else reversed(found.entries):
        if entry.kind is RecordKind.RUN_ENDED:
            return "finished"
        if entry.kind is RecordKind.RUN_FAILED:
            return STOPPED_BY.get(entry.body["error"], "failed")
        if entry.kind is RecordKind.SUPERSEDED:  # the end of an older generation is not the end of the run
            break
    gone = "unknown" if found.newest_lost else "stopped"
    lease = path / LEASE
    said = ""
    if lease.is_file():
        with lease.open("rb") as file:
            said = file.read(512).decode(errors="replace")
    holder = re.match(r"pid (\d{1,9}) on (.+)", said)
    if holder is None:
        return gone
    if holder[2] != socket.gethostname():
        return "open"
    return "running" if is_alive(int(holder[1])) else gone


def _seeds(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the state of each seed as JSON values, from the records of the journal.

    `g2` has the figures of the last judgement of G2 with their limits, None if none was made.
    `blend` is the report of the last round in which the seed was in the host. `rate_scale` is the factor on the
    learning rates of the seed. `culled_for` has the reasons for which the seed was culled, None if it was not culled.
    `adopted_at` is the fence at which the seed's fork became the live host, None if it did not.
    """
    seeds: dict[str, dict[str, Any]] = {}
    factors: dict[str, tuple[str, float]] = {}
    adopted: dict[str, int] = {}
    for entry in entries:
        body = entry.body
        if entry.kind is RecordKind.TRANSITION:
            new = {"seed_id": body["seed_id"], "gain": None, "z": None, "g2": None, "blend": None}
            seed = seeds.setdefault(body["seed_id"], new | {"rate_scale": 1.0, "culled_for": None, "adopted_at": None})
            seed |= {"slot": body["slot"], "blueprint": body["blueprint_id"], "stage": body["after"]}
        elif entry.kind is RecordKind.FIELD_REPORT and body["seed_id"] in seeds and body["reasons"]:
            seeds[body["seed_id"]]["culled_for"] = list(body["reasons"])
        elif entry.kind is RecordKind.GATE and body["gate"] == Gate.G2 and body["seed_id"] in seeds:
            verdict = verdict_of(GateReport.model_validate_json(json.dumps(body)))
            if verdict is not None:
                seeds[body["seed_id"]]["g2"] = verdict.model_dump()
        elif entry.kind is RecordKind.ADOPTED:
            adopted[body["command_id"]] = body["fence"]
        elif entry.kind is RecordKind.PLAN_APPLIED and body["command_id"] in adopted:
            if body.get("seed_id") in seeds:
                seeds[body["seed_id"]]["adopted_at"] = adopted[body["command_id"]]
        elif entry.kind is RecordKind.COMMAND and "rate_scale" in body and body["rate_scale"] is not None:
            factors[body["command_id"]] = body["seed_id"], body["rate_scale"]
        elif entry.kind is RecordKind.PLAN_APPLIED and body["command_id"] in factors:
            seed_id, factor = factors[body["command_id"]]
            if seed_id in seeds:
                seeds[seed_id]["rate_scale"] = factor
        elif entry.kind is RecordKind.ROUND_ENDED and "blends" in body:  # earlier versions did not report blends
            for report in body["blends"]:
                if report["seed_id"] in seeds:
                    blend = {name: report[name] for name in ("mode", "mean", "p95", "clamped")}
                    seeds[report["seed_id"]]["blend"] = blend
        elif entry.kind is RecordKind.INCUBATION_ENDED:
            for fork in body["forks"]:
                if fork["gate"] is not None and fork["seed_id"] in seeds:
                    gate = PairedLosses.model_validate(fork["gate"])
                    seeds[fork["seed_id"]] |= {"gain": gate.relative_gain, "z": gate.z}
    return list(seeds.values())
