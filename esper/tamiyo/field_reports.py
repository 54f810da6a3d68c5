"""The store of field reports: log segments with framed records. After `append` returned, the report is durable.

Damaged records are skipped. The store is for people and for later runs. The policy does not read the store. It reads
the reports in `TamiyoState`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
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
"""Kind number of a field report's frame. The store has no other kind."""
SEGMENT = re.compile(r"reports-(\d+)\.log")


@dataclass(frozen=True)
class UnreadEntry:
    """Bytes of a segment that are not a readable report: file, offset and length in bytes, and the reason."""

    file: Path
    offset: int
    length: int
    reason: str


@dataclass(frozen=True)
class LoadedReports:
    """The content of a store: the readable reports, and every unreadable entry."""

    reports: tuple[FieldReport, ...]
    errors: tuple[UnreadEntry, ...]


class FieldReportStore(Closing):
    """Appends reports. Each report is durable when `append` returns.

    If the newest segment is not a readable log, it is left unchanged for inspection, and reports go into a new segment.
    `load_reports` reports the damage.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store. If its folder is missing, make it. Raises: StoreWriteFailed: the store cannot be written."""
        make_folders(folder)
        last = max(map(_number, _segments(folder)), default=1)
        try:
            self._log = FramedLog.open(_segment(folder, last))
        except StoreCorrupt:
            self._log = FramedLog.open(_segment(folder, last + 1))

    def append(self, report: FieldReport) -> None:
        """Append a report and sync it.

        Raises:
            StoreWriteFailed: the report may not be durable.
        """
        self._log.append(KIND, report.model_dump_json().encode())

    def close(self) -> None:
        """Close the segment's file."""
        self._log.close()


def parse_report(payload: bytes | str) -> FieldReport:
    """Return the field report in a JSON text.

    Raises:
        FieldReportInvalid: a required value, for example `issued_at`, is missing or wrong.
    """
    try:
        return FieldReport.model_validate_json(payload)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, e["loc"])) or e["type"] for e in error.errors())
        invalid = FieldReportInvalid("field report", f"missing or wrong: {wrong}")
        raise reported(invalid, "field_report_invalid", Severity.ERROR, fields=wrong) from error


def load_reports(folder: Path) -> LoadedReports:
    """Return every readable report of a store. Damaged or invalid entries are skipped, counted, listed and reported.
    An incomplete last entry, which a killed writer leaves, is listed and counted only: its report was never durable.

    After a restart, a run writes some reports again, with the same ids. The last report of each id is returned.
    """
    reports: dict[str, FieldReport] = {}
    errors: list[UnreadEntry] = []
    for segment in sorted(_segments(folder), key=_number):
        try:
            found = scan(segment)
        except StoreCorrupt as damage:  # the segment becomes one unreadable entry; the other segments are still read
            errors.append(_damaged(UnreadEntry(segment, 0, segment.stat().st_size, damage.reason)))
            continue
        errors += [_damaged(UnreadEntry(segment, one.offset, one.length, one.reason)) for one in found.errors]
        if (tail := found.torn_tail) is not None:
            errors.append(UnreadEntry(segment, tail.offset, tail.length, tail.reason))
        for frame in found.frames:
            try:
                report = parse_report(frame.payload)
                reports[report.report_id] = report
            except FieldReportInvalid as invalid:  # the error is reported and counted; the other entries are still read
                errors.append(UnreadEntry(segment, frame.offset, len(frame.payload), str(invalid)))
    for _ in errors:
        count("esper.load.errors", store="field_reports")
    return LoadedReports(tuple(reports.values()), tuple(errors))


def tell_missing(folder: Path, loaded: LoadedReports, journalled: Collection[str]) -> tuple[str, ...]:
    """Report the reports that the journal has and the store does not. Return a line if there are some.

    A report is durable in the store before its record is in the journal, so a missing report was lost. If the last
    entry of a segment is damaged, it looks like an incomplete entry, and only the journal shows that it was complete.
    Each unreadable entry of `loaded` may be one of the missing reports, and is not reported again.

    Args:
        journalled: Ids of the reports in the valid records of the journal.
    """
    there = {report.report_id for report in loaded.reports}
    missing = [report_id for report_id in journalled if report_id not in there]
    lost = len(missing) - len(loaded.errors)
    if lost <= 0:
        return ()
    why = f"{lost} reports of the journal are missing; {missing[-1]} is one of the missing reports"
    severe("field_reports_damaged", Severity.ERROR, file=str(folder), offset=0, reason=why)
    for _ in range(lost):
        count("esper.load.errors", store="field_reports")
    return (f"damaged: {folder.name}: {why}",)


def _damaged(entry: UnreadEntry) -> UnreadEntry:
    where = {"file": str(entry.file), "offset": entry.offset}
    severe("field_reports_damaged", Severity.ERROR, **where, reason=entry.reason)
    return entry


def _segments(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if SEGMENT.fullmatch(file.name)] if folder.is_dir() else []


def _segment(folder: Path, number: int) -> Path:
    return folder / f"reports-{number}.log"


def _number(segment: Path) -> int:
    return int(segment.stem.rpartition("-")[2])
