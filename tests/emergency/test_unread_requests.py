"""The report about requests that no process has read: the HALTs first, a bounded number of lines, and no error."""

from __future__ import annotations

import json
from pathlib import Path

from queues import signal

from esper.emergency.requests import INBOX, SignalRequest, submit
from esper.emergency.unread_requests import MOST_LINES, report_unread
from esper.leyline.signals import Level
from esper.telemetry.context import use
from esper.telemetry.events import LOG
from esper.telemetry.setup import Telemetry


def test_many_requests_are_named_up_to_a_limit_and_the_rest_is_counted(tmp_path: Path) -> None:
    (tmp_path / INBOX).mkdir()
    for number in range(MOST_LINES + 2):
        (tmp_path / INBOX / f"a{number}").touch()
    submit(tmp_path, SignalRequest(signal=signal("stop", Level.HALT)))
    first, *others, last = report_unread(tmp_path)
    assert first.startswith("signal stop (HALT: ")
    assert len(others) == MOST_LINES - 1
    assert last.startswith("3 more requests ")


def test_an_inbox_that_cannot_be_read_is_a_line_and_a_severe_event(tmp_path: Path) -> None:
    assert report_unread(tmp_path) == ()  # no inbox has no request
    (tmp_path / INBOX).touch()
    with Telemetry.start(tmp_path / "telemetry", "conductor") as telemetry, use(telemetry):
        (line,) = report_unread(tmp_path)
    assert str(tmp_path / INBOX) in line
    (event,) = (tmp_path / "telemetry" / LOG).read_text().splitlines()
    assert json.loads(event)["name"] == "emergency_inbox_unreadable"
