"""Writes the report of drills into a file. The ending of its name decides the format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drills.page import as_html
from drills.report import Outcome, as_json, as_junit
from esper.archive.summary import Summary
from esper.durable.files import atomic_write
from esper.errors import ConfigError
from esper.ground.strict_json import strict_json

FORMATS = {
    ".json": lambda outcomes, seed, undisturbed: strict_json(as_json(outcomes, seed, undisturbed), indent=1),
    ".xml": as_junit,
    ".html": as_html,
}


def checked_report(file: Path | None) -> None:
    """Refuse a report that could not be written, before any drill runs. Raises: ConfigError."""
    if file is None:
        return
    if file.suffix not in FORMATS:
        raise ConfigError("--report", str(file), f"its name must end in {', '.join(FORMATS)}")
    if not file.absolute().parent.is_dir():
        raise ConfigError("--report", str(file), "its folder does not exist")


def write(file: Path | None, outcomes: Sequence[Outcome], seed: int, undisturbed: Summary | None = None) -> None:
    """Write the report, atomically.

    Args:
        file: The file. None: no report was asked for.
        undisturbed: The run with which the drills were compared. None: it was not made.
    """
    if file is not None:
        atomic_write(file, FORMATS[file.suffix](outcomes, seed, undisturbed).encode())
