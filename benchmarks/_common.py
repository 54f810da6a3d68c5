"""The shared parts of the benchmarks: the machine, medians with their spread, rows, and the JSON file.

A figure is compared with a limit or a peer. Figure and peer are measured in the same run, in alternation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from esper.durable.files import atomic_write
from esper.ground.machine import cpu_type

RESULTS = Path(__file__).parent / "results"
VERSIONED = ("esper-runtime", "torch", "ray", "numpy", "pydantic", "opentelemetry-sdk")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of a figure."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def lower_quartile(self) -> float:
        """The lower quartile. For times, it is near the time on a machine without other load."""
        return self.quartiles[0]

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile. If there is a single value, both are this value."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def as_json(self) -> dict[str, Any]:
        low, high = self.quartiles
        return {"count": len(self.values), "median": self.median, "lower_quartile": low, "upper_quartile": high}


@dataclass(frozen=True)
class Row:
    """One line of a result: a figure and its limit, or its peer in the same run."""

    measure: str
    value: float
    limit: float | None
    ratio: float | None
    target: str
    kind: str
    """"must", "goal" or "info"."""
    met: bool | None

    @classmethod
    def judged(cls, measure: str, value: float, limit: float, target: str, met: bool, kind: str = "must") -> Row:
        """Return the row of a figure with a target."""
        return cls(measure, value, limit, value / limit, target, kind, met)

    @classmethod
    def told(cls, measure: str, value: float, limit: float | None = None) -> Row:
        """Return the row of a figure without a target."""
        return cls(measure, value, limit, value / limit if limit else None, "", "info", None)


@dataclass(frozen=True)
class Outcome:
    """The result of a benchmark: rows, and the spreads from which they are computed."""

    rows: Sequence[Row]
    spreads: dict[str, Spread]


def main(name: str, about: str, measure: Callable[[int], Outcome], repetitions: int = 5) -> None:
    """Run one benchmark from the command line. With `--json`, the result is printed and written to a dated file."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--repetitions", type=int, default=repetitions, help=f"default {repetitions}")
    parser.add_argument("--json", action="store_true", help=f"one JSON object, also written to {RESULTS.name}/")
    asked, here = parser.parse_args(), machine()  # first, because a benchmark may restrict this process to some cores
    outcome = measure(asked.repetitions)
    for row in outcome.rows:
        print(_line(row), file=sys.stderr)
    for label, spread in outcome.spreads.items():
        low, high = spread.quartiles
        print(f"    {label}: median {spread.median:.4g}, quartiles {low:.4g} to {high:.4g}", file=sys.stderr)
    if asked.json:
        found = {"name": name, "machine": here, "rows": [asdict(row) for row in outcome.rows]}
        _write(name, found, outcome.spreads, asked.repetitions)
        print(json.dumps(found))


def machine() -> dict[str, Any]:
    """Return the hardware, the versions of packages, and the commit of the checkout."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_type(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": os.getloadavg()[1],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONED},
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for run directories. It is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
        yield Path(folder)


def _line(row: Row) -> str:
    verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
    beside = f" / {row.limit:.4g} = {row.ratio:.3f}" if row.limit is not None and row.ratio is not None else ""
    return f"{row.kind:<5} {row.measure}: {row.value:.4g}{beside}  {row.target}  {verdict}".rstrip()


def _write(name: str, found: dict[str, Any], spreads: dict[str, Spread], repetitions: int) -> None:
    now = datetime.now(UTC)
    told = {
        **found,
        "command": " ".join(["python", *sys.argv]),
        "finished_at": now.isoformat(timespec="seconds"),
        "repetitions": repetitions,
        "spreads": {label: spread.as_json() for label, spread in spreads.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    atomic_write(RESULTS / f"{name}-{now.date()}.json", (json.dumps(told, indent=1) + "\n").encode())
