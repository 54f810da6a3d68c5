"""The store of field reports: framed log segments that lose nothing they acknowledged and skip what is damaged.

The policy never reads it: it has its own view of the past. The store is for people and for later runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from esper.durable.files import make_folders
from esper.durable.log import FramedLog, scan
from esper.errors import FieldReportInvalid, StoreCorrupt
from esper.ground.closing import Closing
from esper.leyline.reports import FieldReport
from esper.telemetry.events import Severity, reported, severe
from esper.telemetry.metrics import count

KIND = 1
SEGMENT = re.compile(r"reports-(\d+)\.log")


@dataclass(frozen=True)
class UnreadEntry:
    """Bytes of a segment that hold no readable report: the file, the offset in it, and what was wrong there."""

    file: Path
    offset: int
    length: int
    reason: str


@dataclass(frozen=True)
class LoadedReports:
    """What a store holds: the reports that could be read, and every entry that could not."""

    reports: tuple[FieldReport, ...]
    errors: tuple[UnreadEntry, ...]


class FieldReportStore(Closing):
    """Appends reports; each is durable before `append` returns.

    A segment that is no log any more is left as it is, for people, and the next is begun.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store, which may have to be made. Raises: StoreWriteFailed: it cannot be written."""
        make_folders(folder)
        last = max(map(_number, _segments(folder)), default=1)
        try:
            self._log = FramedLog.open(_segment(folder, last))
        except StoreCorrupt as damage:
            severe("field_reports_damaged", Severity.ERROR, file=damage.path, reason=damage.reason)
            self._log = FramedLog.open(_segment(folder, last + 1))

    def append(self, report: FieldReport) -> None:
        """Make a report durable.

        Raises:
            StoreWriteFailed: it is not.
        """
        self._log.append(KIND, report.model_dump_json().encode())

    def close(self) -> None:
        """Release the segment."""
        self._log.close()


def parse_report(payload: bytes | str) -> FieldReport:
    """A field report from its JSON.

    Raises:
        FieldReportInvalid: a required value is missing or wrong, `issued_at` among them (#12).
    """
    try:
        return FieldReport.model_validate_json(payload)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, e["loc"])) or e["type"] for e in error.errors())
        invalid = FieldReportInvalid("field report", f"missing or wrong: {wrong}")
        raise reported(invalid, "field_report_invalid", Severity.ERROR, fields=wrong) from error


def load_reports(folder: Path) -> LoadedReports:
    """Every readable report of a store; damaged or invalid entries are skipped, counted and named (#11).

    A run that goes back to a fence reports what it does again once more, under the same id: the last time counts.
    """
    reports: dict[str, FieldReport] = {}
    errors: list[UnreadEntry] = []
    for segment in sorted(_segments(folder), key=_number):
        try:
            found = scan(segment)
        except StoreCorrupt as damage:  # as any other damage: the other segments are read
            errors.append(UnreadEntry(segment, 0, segment.stat().st_size, damage.reason))
            continue
        damaged = [*found.errors, *([found.torn_tail] if found.torn_tail is not None else [])]
        errors += [UnreadEntry(segment, error.offset, error.length, error.reason) for error in damaged]
        for frame in found.frames:
            try:
                report = parse_report(frame.payload)
                reports[report.report_id] = report
            except FieldReportInvalid as invalid:  # told and counted; one bad entry must not hide the good ones
                errors.append(UnreadEntry(segment, frame.offset, len(frame.payload), str(invalid)))
    for _ in errors:
        count("esper.load.errors", store="field_reports")
    return LoadedReports(tuple(reports.values()), tuple(errors))


def _segments(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if SEGMENT.fullmatch(file.name)] if folder.is_dir() else []


def _segment(folder: Path, number: int) -> Path:
    return folder / f"reports-{number}.log"


def _number(segment: Path) -> int:
    return int(segment.stem.rpartition("-")[2])
