"""The picture of docs/architecture.md shows the calls of today."""

from __future__ import annotations

import flow_picture
import pytest


@pytest.mark.slow
def test_the_picture_shows_what_the_line_calls_today() -> None:
    rounds = flow_picture.recorded_run().rounds()
    drawn = flow_picture.svg(list(flow_picture.shown(rounds)))
    mend = "run: python tools/flow_picture.py"
    assert flow_picture.PICTURE.read_text(encoding="utf-8") == drawn, mend
