"""Writes the times of the parts of `make test` and `make check` into docs/ci.md. The times are from pytest's reports.

Run it by `make minutes` after these targets. The table of a target without reports is not changed.
"""

from __future__ import annotations

import os
import platform
import sys
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from parts import REPORTS, ROOT

DOCS = ROOT / "docs" / "ci.md"
HEAVIEST = 8
"""Number of test files that each table names."""


@dataclass(frozen=True)
class Part:
    """One pytest process: its numbers of tests and of failures, and its seconds, in total and by test file."""

    name: str
    tests: int
    failed: int
    seconds: float
    by_file: dict[str, float]
    ended: datetime


def read(report: Path) -> Part:
    """Return the content of a report of pytest.

    Raises:
        ElementTree.ParseError: the report is incomplete.
    """
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    by_file = defaultdict[str, float](float)
    for case in suite.iter("testcase"):
        by_file[case.attrib["classname"].partition(".Test")[0]] += float(case.attrib["time"])
    return Part(
        report.stem,
        int(suite.attrib["tests"]),
        int(suite.attrib["failures"]) + int(suite.attrib["errors"]),
        float(suite.attrib["time"]),
        by_file,
        datetime.fromtimestamp(report.stat().st_mtime, UTC),
    )


def machine() -> str:
    """Return the name of the processor and the number of cores that this process may use."""
    told = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def table(target: str, found: list[Part]) -> str:
    """Return the table of a target for docs/ci.md."""
    lines = [f"{found[0].ended:%Y-%m-%d}, {machine()}.", "", "| part | tests | minutes |", "|---|---|---|"]
    lines += [
        f"| {part.name} | {part.tests}{f', {part.failed} failed' if part.failed else ''} | {part.seconds / 60:.1f} |"
        for part in found
    ]
    lines += [f"| **`make {target}`**, side by side | | **{max(part.seconds for part in found) / 60:.1f}** |", ""]
    every = sorted(((seconds, name) for part in found for name, seconds in part.by_file.items()), reverse=True)
    heaviest = [f"`{name.replace('.', '/')}.py` {seconds:.0f}" for seconds, name in every[:HEAVIEST]]
    return "\n".join([*lines, f"The heaviest files, in seconds: {', '.join(heaviest)}.", ""])


def written(text: str, target: str, found: list[Part]) -> str:
    """Return the page with a new table of one target."""
    begin, end = f"<!-- minutes of {target} -->\n", f"<!-- end of {target} -->\n"
    before, there, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (there and closed):
        raise SystemExit(f"{DOCS}: no {begin.strip()} ... {end.strip()}")
    return f"{before}{begin}{table(target, found)}{end}{after}"


def main() -> None:
    """Write the tables. Exit with code 1 if no target has reports."""
    targets = {target: sorted((REPORTS / target).glob("*.xml")) for target in ("test", "check")}
    if not any(targets.values()):
        sys.exit(f"no reports in {REPORTS}: run make test or make check first")
    text = DOCS.read_text(encoding="utf-8")
    for target, reports in targets.items():
        if reports:
            text = written(text, target, [read(report) for report in reports])
    DOCS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
