"""The page of a report of drills, in a browser: no width needs a horizontal scroll, and the time lines can be seen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from drills import Drill
from drills.drill import Finding
from drills.page import as_html
from drills.report import Mark, Outcome, Span, phases

FRAME = """<!doctype html><iframe id="page" src="file://{page}" style="width:{width}px;height:2000px;border:0"></iframe>
<script>
page.onload = () => {{
  const d = page.contentDocument, root = d.documentElement;
  const lines = [...d.querySelectorAll("svg")].map(one => one.getBoundingClientRect());
  document.title = JSON.stringify({{
    scroll: root.scrollWidth, client: root.clientWidth, height: root.scrollHeight,
    lines: lines.map(box => [box.width, box.height]),
    bars: [...d.querySelectorAll("rect")].map(one => one.getBoundingClientRect().width),
  }});
}}
</script>"""


def outcome(number: int) -> Outcome:
    """Return an outcome with long names, many events, and a failed expectation if the number is odd."""
    met = number % 2 == 0
    drill = Drill(f"drill-{number}", "A drill. " * 12, lambda _: None, (), number=number)
    why = Finding("severe events " + "command_validation_failed_" * 6, "none", met)
    spans = (Span(0.0, 4.0, "run: exit code 3, DependencyViolationError", False), Span(4.0, 9.0, "resume", True))
    marks = tuple(Mark(1.0 + 0.001 * place, "emergency_signal_rejected") for place in range(400))
    return Outcome(
        drill=drill,
        findings=(why,),
        error="DependencyViolationErrorOfAVeryLongName" * 2,
        fault_fired=1,
        phases_s=phases(()),
        steps_redone=20,
        signals_lost=0,
        signals_duplicated=0,
        same_bits=True,
        leaks=(),
        trace_id="0123456789abcdef" * 2,
        wall_s=9.0,
        spans=spans,
        marks=marks,
        notes=("episode 0: " + "on-actors-" * 30,),
    )


def test_many_events_of_one_name_are_one_entry_of_the_legend() -> None:
    page = as_html([outcome(0)], seed=1)
    assert "1.00 s to 1.40 s 400 times emergency_signal_rejected" in page
    assert page.count("<path") < 60


@pytest.mark.browser
@pytest.mark.parametrize("width", [380, 800, 1400])
def test_the_page_fits_its_window(width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    assert browser, "install chromium; the mark `browser` asks for it"
    page, frame = tmp_path / "page.html", tmp_path / "frame.html"
    page.write_text(as_html([outcome(number) for number in range(4)], seed=1))
    frame.write_text(FRAME.format(page=page, width=width))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command = [browser, *options, "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", str(frame)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (title,) = re.findall(r"<title>(.+?)</title>", shown)
    found = json.loads(html.unescape(title))
    assert found["scroll"] == found["client"] <= width
    assert found["height"] < 40_000
    assert [box for box in found["lines"] if box[0] > min(0.8 * found["client"], 1000) and box[1] > 30] == found[
        "lines"
    ]
    assert len(found["lines"]) == 4
    assert min(found["bars"]) > 50
