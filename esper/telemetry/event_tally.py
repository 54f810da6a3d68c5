"""Counts the severe events in the log of a run, which has those of all its processes, also of processes that died."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

from esper.telemetry.events import LOG, NAMES
from esper.telemetry.metric_snapshot import MetricSnapshot

EVENTS = "esper.severe_events"


class EventTally:
    """The severe events that were logged since the tally was made. Any thread may call `raised`."""

    def __init__(self, directory: Path) -> None:
        self._path, self._guard = directory / LOG, threading.Lock()
        self._counted = Counter[str]()
        self._read = self._path.stat().st_size if self._path.exists() else 0

    def raised(self, reported: MetricSnapshot) -> MetricSnapshot:
        """Return a snapshot with the larger number of the log and of `reported`, for each severe event.

        A process that dies directly after an event has no time to report its count, but the event is in the log. If the
        log cannot be read, nothing is raised.
        """
        series = dict(reported.counters[EVENTS]) if EVENTS in reported.counters else {}
        with self._guard:
            self._read_on()
            for event, counted in self._counted.items():
                key = (("event", event),)
                series[key] = max(counted, series[key]) if key in series else counted
        counters = {**reported.counters, EVENTS: series}
        return MetricSnapshot(reported.number, counters, reported.histograms, reported.gauges)

    def _read_on(self) -> None:
        """Count the complete lines that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except OSError:  # there was no event yet, or the disk fails; what was reported counts
            return
        complete = added[: added.rfind(b"\n") + 1]
        self._read += len(complete)
        self._counted.update(name for line in complete.splitlines() if (name := _name_of(line)) in NAMES)


def _name_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["name"])
    except (ValueError, KeyError, TypeError):  # a line that a full disk has cut
        return ""
