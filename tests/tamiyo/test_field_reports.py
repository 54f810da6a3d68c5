"""Field reports: what lacks a value is refused, what was stored is read back, and damage hides only itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deciding import make_report

from esper.durable.log import FramedLog, scan
from esper.errors import FieldReportInvalid, StoreWriteFailed
from esper.leyline.reports import FieldReport
from esper.tamiyo.field_reports import KIND, FieldReportStore, UnreadEntry, load_reports, parse_report, tell_missing
from esper.telemetry import Telemetry
from esper.testing import telling


def as_json(report: FieldReport, **changes: Any) -> str:
    """A report's JSON with some values changed, or taken out by `...`."""
    fields = json.loads(report.model_dump_json()) | changes
    return json.dumps({key: value for key, value in fields.items() if value is not ...})


def stored(folder: Path, *reports: FieldReport) -> Path:
    store = FieldReportStore(folder)
    for report in reports:
        store.append(report)
    store.close()
    return folder / "reports-1.log"


def test_a_whole_report_is_read(told: Callable[[], list[str]]) -> None:
    report = make_report()

    assert parse_report(as_json(report)) == parse_report(as_json(report).encode()) == report
    assert told() == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"issued_at": ...}, "issued_at"),
        ({"issued_at": "2026-01-01T00:00:00"}, "issued_at"),
        ({"issued_at": None}, "issued_at"),
        ({"issued_at": 1767225600}, "issued_at"),
        ({"outcome": "FINE"}, "outcome"),
        ({"gain": ..., "z": ...}, "gain, z"),
        ({"weather": "good"}, "weather"),
    ],
    ids=str,
)
def test_a_report_that_lacks_what_it_must_carry_is_refused_and_told(
    changes: dict[str, Any], named: str, telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    with pytest.raises(FieldReportInvalid, check=telling(named, "missing", subject="field report")):
        parse_report(as_json(make_report(), **changes))
    assert told() == ["field_report_invalid"]
    assert telemetry.counters.total("esper.severe_events", event="field_report_invalid") == 1


@pytest.mark.parametrize("text", ["", "[]", "no json", "{"])
def test_what_is_no_report_at_all_is_refused(text: str) -> None:
    with pytest.raises(FieldReportInvalid):
        parse_report(text)


def test_what_a_run_reported_again_after_it_went_back_is_read_once(tmp_path: Path) -> None:
    again = make_report(1, generation=3)
    stored(tmp_path, make_report(1, generation=2), make_report(2), again)
    assert load_reports(tmp_path).reports == (again, make_report(2))


def test_what_was_stored_is_read_back(tmp_path: Path, telemetry: Telemetry) -> None:
    reports = (
        make_report(1),
        make_report(2, reasons=(), gain=0.1, z=5.5),
        make_report(3, gain=float("inf"), z=float("-inf")),  # of a control without any loss
    )
    stored(tmp_path / "field_reports", *reports[:2])
    stored(tmp_path / "field_reports", reports[2])  # opened again
    loaded = load_reports(tmp_path / "field_reports")

    assert loaded.reports == reports
    assert loaded.errors == ()
    assert telemetry.counters.total("esper.load.errors") == 0


def test_an_empty_or_absent_store_holds_nothing(tmp_path: Path) -> None:
    stored(tmp_path / "empty")

    assert load_reports(tmp_path / "empty").reports == load_reports(tmp_path / "absent").reports == ()


def test_a_damaged_entry_is_skipped_named_and_counted(tmp_path: Path, telemetry: Telemetry) -> None:
    segment = stored(tmp_path, *(make_report(n) for n in (1, 2, 3)))
    data = bytearray(segment.read_bytes())
    data[data.index(b"report-2")] ^= 1
    second = scan(segment).frames[1].offset
    segment.write_bytes(data)
    check_loaded(tmp_path, ["report-1", "report-3"], segment, second, "the checksum of the payload is wrong")
    assert telemetry.counters.total("esper.load.errors", store="field_reports") == 1


def test_a_torn_tail_is_named_and_counted(tmp_path: Path, telemetry: Telemetry) -> None:
    segments = [stored(tmp_path / str(n), make_report(n)).rename(tmp_path / f"reports-{n}.log") for n in (7, 8)]
    last = scan(segments[0]).frames[0].offset
    segments[0].write_bytes(segments[0].read_bytes()[:-5])
    check_loaded(tmp_path, ["report-8"], segments[0], last, "the frame is cut short")
    assert telemetry.counters.total("esper.load.errors") == 1


def check_loaded(folder: Path, reports: list[str], segment: Path, offset: int, reason: str) -> None:
    """What is loaded, beside the one place that is damaged."""
    loaded = load_reports(folder)
    assert [report.report_id for report in loaded.reports] == reports
    assert [(error.file, error.offset, error.reason) for error in loaded.errors] == [(segment, offset, reason)]


def test_a_sound_entry_that_is_no_report_hides_none_of_the_others(
    tmp_path: Path, telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    stored(tmp_path, make_report(1))
    log = FramedLog.open(tmp_path / "reports-1.log")
    log.append(KIND, as_json(make_report(2), issued_at=...).encode())
    log.close()
    stored(tmp_path, make_report(3))

    loaded = load_reports(tmp_path)

    assert [report.report_id for report in loaded.reports] == ["report-1", "report-3"]
    (error,) = loaded.errors
    assert error.file == tmp_path / "reports-1.log"
    assert error.offset == scan(tmp_path / "reports-1.log").frames[1].offset
    assert "issued_at" in error.reason
    assert told() == ["field_report_invalid"]
    assert telemetry.counters.total("esper.load.errors") == 1


def test_a_report_of_the_journal_that_the_store_does_not_have_is_told_once(
    tmp_path: Path, telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    """A report whose record was the last of its segment, and was damaged, is cut off when the store is opened."""
    stored(tmp_path, make_report(1))
    segment = stored(tmp_path, make_report(2))
    segment.write_bytes(segment.read_bytes()[:-1])
    FieldReportStore(tmp_path).close()
    loaded = load_reports(tmp_path)
    assert tell_missing(tmp_path, loaded, ["report-1"]) == ()
    assert told() == []
    (line,) = tell_missing(tmp_path, loaded, ["report-1", "report-2"])
    assert "report-2" in line
    assert told() == ["field_reports_damaged"]
    assert telemetry.counters.total("esper.load.errors", store="field_reports") == 1
    an_entry = replace(loaded, errors=(UnreadEntry(segment, 0, 1, "damaged"),))
    assert tell_missing(tmp_path, an_entry, ["report-1", "report-2"]) == ()


def test_a_segment_that_is_no_log_is_left_as_it_is_and_the_next_is_begun(
    tmp_path: Path, telemetry: Telemetry, told: Callable[[], list[str]]
) -> None:
    damaged = stored(tmp_path, make_report(1))
    damaged.write_bytes(b"\0" + damaged.read_bytes()[1:])
    before = damaged.read_bytes()
    for number in (2, 3):
        stored(tmp_path, make_report(number))

    loaded = load_reports(tmp_path)

    assert told() == ["field_reports_damaged"]
    assert damaged.read_bytes() == before
    assert [report.report_id for report in loaded.reports] == ["report-2", "report-3"]
    assert [(error.file, error.offset, error.length) for error in loaded.errors] == [(damaged, 0, len(before))]
    assert telemetry.counters.total("esper.load.errors", store="field_reports") == 1


def test_a_store_whose_folder_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "field_reports").write_text("")
    with pytest.raises(StoreWriteFailed, check=telling("field_reports", doing="making the folder")):
        FieldReportStore(tmp_path / "field_reports")
