"""Sends emergency signals to a run at a fence, as `esper signal` does from another process."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from drills.severe_log import severe_events
from esper.emergency.settings import FileSinkConfig
from esper.flow.operator import send
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.leyline.signals import Level
from esper.leyline.state import RoundState
from esper.setup.survey import Survey

SINK = FileSinkConfig(name="file", kind="file")
"""A sink that writes `RUN/emergency/signals.jsonl`."""
FULL_S = 120.0


class SendsSignals(Quiet):
    """Progress of a run that sends a number of signals when a fence has been passed. `sent` has their ids.

    Args:
        before: Called once, directly before the first signal.
        refused: The fence lasts until the queue has refused this number of signals.
        retried: The fence lasts until this number of deliveries has failed and was planned again.

    After `FULL_S` seconds the fence ends in any case.
    """

    def __init__(
        self,
        fence: int,
        number: int,
        before: Callable[[], object] = lambda: None,
        refused: int = 0,
        retried: int = 0,
    ) -> None:
        self.sent: list[str] = []
        self._fence, self._number, self._before = fence, number, before
        self._refused, self._retried = refused, retried
        self._path = Path()

    def started(self, survey: Survey, path: Path) -> None:
        """Keep the directory of the run."""
        del survey
        self._path = path

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Send the signals, once."""
        del tally
        if state.fence != self._fence or self.sent:
            return
        self._before()
        for number in range(self._number):
            signal, _ = send(self._path, Level.NOTICE, f"drill signal {number}", {}, 0.0)
            self.sent.append(signal.signal_id)
        limit = time.monotonic() + FULL_S
        while not self._have_come() and time.monotonic() < limit:
            time.sleep(0.05)

    def _have_come(self) -> bool:
        """Return whether the severe events tell of all refusals and retries for which the fence waits."""
        retries = sum(event["name"] == "emergency_signal_retried" for event in severe_events(self._path))
        return len(refused(self._path)) >= self._refused and retries >= self._retried


def refused(run_dir: Path) -> set[str]:
    """Return the ids of the signals that the queue of a run refused to their sender, by the severe events."""
    told = (event["fields"] for event in severe_events(run_dir) if event["name"] == "emergency_signal_rejected")
    return {fields["signal_id"] for fields in told}


def delivered(*files: Path) -> Counter[str]:
    """Return how often file sinks got each signal, by id. A file may be missing."""
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return Counter(json.loads(line)["signal_id"] for line in lines)
