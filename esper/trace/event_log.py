"""Reads the severe events of a run from the log in its telemetry folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esper.trace.span_files import EVENTS, LIMITS, TORN, Limits, Skipped, lines, open_regular, telemetry_of

SEVERITIES = ("WARNING", "ERROR", "CRITICAL")
TEXTS = ("name", "severity", "trace_id", "span_id", "role")
MOST_EVENTS = 100_000
"""Largest number of events that are read."""
DEEPEST = 32
"""Largest number of lists and objects inside each other in the fields of an event. Esper writes at most 5."""


@dataclass(frozen=True)
class SevereEvent:
    """One line of the log."""

    time: datetime
    """In UTC."""
    name: str
    severity: str
    """One of `SEVERITIES`; another text if a later version of esper wrote it."""
    trace_id: str
    """"": the event was outside every span."""
    span_id: str
    role: str
    fields: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the event as `esper events --json` prints it."""
        return {
            "time": self.time.isoformat(),
            "name": self.name,
            "severity": self.severity,
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "role": self.role,
            "fields": self.fields,
        }


def severe_events(run_dir: Path, skipped: Skipped, limits: Limits = LIMITS) -> list[SevereEvent]:
    """Read the severe events of a run, the newest last. A run without severe events may have no log.

    Raises:
        RunDirectoryError: the directory has no readable telemetry folder.
    """
    path = telemetry_of(run_dir) / EVENTS
    if not path.exists() and not path.is_symlink():
        return []
    found: list[SevereEvent] = []
    if (file := open_regular(path, skipped)) is not None:
        with file:
            first = max(0, path.stat().st_size - limits.bytes)
            if first:
                skipped.add(EVENTS, "bytes at its beginning, beyond the limit of one reading", first)
            for line in lines(file, EVENTS, first, skipped, limits):
                if len(found) >= MOST_EVENTS:
                    skipped.add(EVENTS, "events after the limit of one reading")
                    break
                if (event := _event(line)) is not None:
                    found.append(event)
                else:
                    skipped.add(EVENTS, "line that is no severe event" if line.endswith(b"\n") else TORN)
    return sorted(found, key=lambda event: event.time)


def _event(line: bytes) -> SevereEvent | None:
    """Return the event of a line, or None if the line is no severe event."""
    try:
        told = json.loads(line.decode())
        if b"\\ud" in line.lower():  # halves of surrogate pairs, which JSON may contain and UTF-8 may not
            told = json.loads(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"))
        time = datetime.fromisoformat(told["time"])
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        name, severity, trace_id, span_id, role = (told[key] for key in TEXTS)
        fields = told["fields"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):  # a year before 1 in UTC
        return None
    if not all(isinstance(told[key], str) for key in TEXTS) or not isinstance(fields, dict) or not _flat(fields):
        return None
    return SevereEvent(time, name, severity, trace_id, span_id, role, fields)


def _flat(fields: dict[str, Any]) -> bool:
    """Return whether the fields are nested at most `DEEPEST` times. Deeper fields could not be printed."""
    here: list[Any] = [fields]
    for _ in range(DEEPEST):
        inside = [[*one.values()] if isinstance(one, dict) else one for one in here if isinstance(one, dict | list)]
        here = [item for values in inside for item in values]
    return not any(isinstance(one, dict | list) for one in here)
