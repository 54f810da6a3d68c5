"""Reports the requests that no process has read from the inbox when a run ends. They stay there for the next resume."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from esper.emergency.requests import FIRST, INBOX, REQUESTS, SignalRequest, read_request
from esper.telemetry.events import Severity, severe

MOST_NAMES = 10_000
"""Largest number of names in the inbox that are read."""
MOST_LINES = 16
"""Largest number of requests that are named. If there are more, one further line has their number."""
STAYS = "was not read; it stays in the inbox, and a resume that trains on reads it first"


def report_unread(folder: Path) -> tuple[str, ...]:
    """Return one line for people about each request in the inbox, requests with a HALT first. A severe event reports
    the requests, too.

    Nothing in the inbox raises an error. An inbox that cannot be read has a line of its own.

    Args:
        folder: `RUN/emergency`. The folder need not exist.
    """
    try:
        with os.scandir(folder / INBOX) as entries:
            found = [one.name for one in islice(entries, MOST_NAMES) if not one.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return ()
    except OSError as error:
        severe("emergency_inbox_unreadable", Severity.CRITICAL, folder=str(folder / INBOX), why=str(error))
        return (f"the inbox {folder / INBOX} cannot be read: {error.strerror or error}",)
    names = sorted(
        (name for name in found if not name.startswith(".")), key=lambda name: (not name.startswith(FIRST), name)
    )
    if not names:
        return ()
    lines = [f"{_in_words(folder / INBOX / name)} {STAYS}" for name in names[:MOST_LINES]]
    severe("emergency_requests_unread", Severity.WARNING, requests=len(names), first=lines)
    more = len(names) - MOST_LINES
    return (*lines, *([f"{more} more requests were not read; they stay in the inbox, too"] if more > 0 else []))


def _in_words(path: Path) -> str:
    """Return a short description of a request. A file that is not a request is described by its name."""
    try:
        request = REQUESTS.validate_json(read_request(path))
    except (OSError, ValidationError):
        return f"the file {path.name!r} in the inbox"
    if isinstance(request, SignalRequest):
        return f"signal {request.signal.signal_id} ({request.signal.level.name}: {request.signal.reason[:80]!r})"
    return f"the order to {request.kind} {len(request.ids)} signals (the first is {request.ids[0]})"
