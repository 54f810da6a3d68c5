"""Reads the log of severe events of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper.archive.run_directory import telemetry_folder
from esper.telemetry.events import LOG

Refusal = tuple[str, str, str, tuple[str, ...]]
"""Slot, blueprint, gate and reasons of a seed that failed a gate. Two runs with the same bits have the same refusals,
but their seeds have other ids."""


def severe_events(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of the log of a run, in order. The log may be missing."""
    log = telemetry_folder(run_dir) / LOG
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def refusal(event: Mapping[str, Any]) -> Refusal | None:
    """Return the refusal that an event tells of. None: it is no `gate_failure`."""
    if event["name"] != "gate_failure":
        return None
    fields = event["fields"]
    return fields["slot"], fields["blueprint"], fields["gate"], tuple(fields["reasons"])
