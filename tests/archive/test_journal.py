"""The journal: what was written is read in order, and damage costs only the record that it hits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esper.archive.journal import FIRST_GENERATION, Journal, RecordKind, read
from esper.durable.log import FramedLog
from esper.errors import StoreCorrupt
from esper.leyline.reports import GraftReceipt
from esper.testing import telling

RECEIPT = GraftReceipt(command_id="c", seed_id="s", generation=1, step=40, parameters=7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal-1.log"


def test_fields_and_messages_are_read_back_in_order(path: Path) -> None:
    with Journal(path.parent, 1) as journal:
        journal.write(RecordKind.RUN_FAILED, error="X", fence=3)
        journal.write_many([(RecordKind.PLAN_APPLIED, RECEIPT), (RecordKind.RUN_ENDED, {"done": True})])
    entries, errors = read(path)
    assert errors == []
    assert [(entry.kind, entry.body) for entry in entries] == [
        (RecordKind.RUN_FAILED, {"error": "X", "fence": 3}),
        (RecordKind.PLAN_APPLIED, RECEIPT.model_dump()),
        (RecordKind.RUN_ENDED, {"done": True}),
    ]
    offsets = [entry.offset for entry in entries]
    assert offsets == sorted(set(offsets))


def test_it_can_be_read_while_it_is_being_written(path: Path) -> None:
    with Journal(path.parent, 1) as journal:
        journal.write(RecordKind.HOLD, fence=1)
        assert len(read(path)[0]) == 1
        journal.write(RecordKind.HOLD, fence=2)
        assert len(read(path)[0]) == 2


def test_a_damaged_record_is_reported_with_its_place_and_the_rest_is_read(path: Path) -> None:
    with Journal(path.parent, 1) as journal:
        for fence in range(3):
            journal.write(RecordKind.HOLD, fence=fence)
    data = bytearray(path.read_bytes())
    at = data.index(b'"fence": 1')
    data[at] ^= 0xFF
    path.write_bytes(data)
    entries, errors = read(path)
    assert [entry.body["fence"] for entry in entries] == [0, 2]
    assert [error.offset < at < error.offset + error.length for error in errors] == [True]


def test_a_torn_tail_is_reported_too(path: Path) -> None:
    with Journal(path.parent, 1) as journal:
        journal.write(RecordKind.HOLD, fence=0)
        journal.write(RecordKind.HOLD, fence=1)
    path.write_bytes(path.read_bytes()[:-3])
    entries, errors = read(path)
    assert ([entry.body["fence"] for entry in entries], len(errors)) == ([0], 1)


def test_a_record_of_an_unknown_kind_or_without_json_is_reported_and_not_read(path: Path) -> None:
    log = FramedLog.open(path, epoch=FIRST_GENERATION)
    log.append_many(
        [(999, b"{}"), (int(RecordKind.HOLD), b"no json"), (int(RecordKind.HOLD), json.dumps({"fence": 1}).encode())]
    )
    log.close()
    entries, errors = read(path)
    assert [entry.body for entry in entries] == [{"fence": 1}]
    assert ["no journal record" in error.reason for error in errors] == [True, True]


def test_what_is_no_journal_is_refused(path: Path) -> None:
    path.write_text("hello")
    with pytest.raises(StoreCorrupt, check=telling("journal-1.log")):
        read(path)


def test_numbers_of_kinds_are_never_reused() -> None:
    assert len({int(kind) for kind in RecordKind}) == len(RecordKind.__members__)
    assert (RecordKind.RUN_STARTED, RecordKind.RUN_FAILED) == (1, 14)  # what is on disk stays readable
