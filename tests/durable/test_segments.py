"""A log in segments on a real disk: rotation, retention, rewriting, and who may write."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from esper.durable.log import FramedLog
from esper.durable.log_format import Frame
from esper.durable.segments import SegmentedLog, iterate_segments, segments
from esper.errors import RunDirectoryError, StoreCorrupt, StoreWriteFailed
from esper.testing import telling


def opened(folder: Path, limit_bytes: int = 100) -> SegmentedLog:
    return SegmentedLog.open(folder, limit_bytes=limit_bytes)


def filled(folder: Path, count: int = 6) -> SegmentedLog:
    """Two records of 20 bytes fill a segment."""
    log = opened(folder)
    for number in range(count):
        log.append(number, b"%020d" % number)
    return log


def held(folder: Path) -> list[int]:
    return [one.sequence for _, one in iterate_segments(folder) if isinstance(one, Frame)]


def firsts(folder: Path) -> list[int]:
    return [int(path.stem) for path in segments(folder)]


def test_the_records_of_one_call_are_in_one_segment_however_long(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append_many([(1, bytes(90))] * 3)
        log.append(1, b"next")
    assert firsts(tmp_path) == [0, 3]


def test_an_empty_segment_is_not_followed_by_another(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.rotate()
        log.append(1, b"x")
        log.rotate()
        log.rotate()
    assert firsts(tmp_path) == [0, 1]
    with opened(tmp_path) as log:
        assert log.append(1, b"y") == 1


def test_rewriting_keeps_numbers_drops_the_rest_and_removes_what_is_empty(tmp_path: Path) -> None:
    with filled(tmp_path) as log:
        assert log.rewrite(lambda frame: frame.sequence in (1, 5)) == []
        assert held(tmp_path) == [1, 5]
        assert firsts(tmp_path) == [0, 4, 6]
        assert log.append(1, b"after") == 6
    assert held(tmp_path) == [1, 5, 6]


def test_a_rewrite_that_drops_nothing_writes_nothing(tmp_path: Path) -> None:
    with filled(tmp_path) as log:
        log.rotate()
        before = {path: os.stat(path).st_ino for path in segments(tmp_path)}
        log.rewrite(lambda _: True)
        assert {path: os.stat(path).st_ino for path in segments(tmp_path)} == before


def test_a_second_writer_is_refused_by_the_holder_s_name_whatever_segment_is_open(tmp_path: Path) -> None:
    with filled(tmp_path), pytest.raises(RunDirectoryError, check=telling(f"pid {os.getpid()}", "in use", field="log")):
        opened(tmp_path)
    opened(tmp_path).close()


def test_a_log_of_another_epoch_is_not_written_and_not_left_locked(tmp_path: Path) -> None:
    SegmentedLog.open(tmp_path, limit_bytes=100, epoch=3).close()
    with pytest.raises(RunDirectoryError, check=telling("epoch 3", field="epoch", value=0)):
        opened(tmp_path)
    SegmentedLog.open(tmp_path, limit_bytes=100, epoch=3).close()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, check=telling(field="log", value=re.compile("/absent$"))):
        opened(tmp_path / "absent")
    with pytest.raises(StoreCorrupt, check=telling("absent")):
        segments(tmp_path / "absent")


def test_files_of_others_are_left_alone_and_litter_of_our_own_is_not(tmp_path: Path) -> None:
    ours = tmp_path / f".{0:020d}.log.0123456789abcdef.tmp"
    others = [tmp_path / name for name in ("journal-1.log", "1.log", ".x.tmp", f"{0:020d}.log.bak")]
    for path in [ours, *others]:
        path.write_bytes(b"?")
    opened(tmp_path).close()
    assert not ours.exists()
    assert all(path.read_bytes() == b"?" for path in others)
    assert firsts(tmp_path) == [0]


def test_a_closed_log_says_so_and_may_be_closed_again(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.close()
    log.close()
    for call in (lambda: log.append(1, b"late"), log.rotate, lambda: log.rewrite(lambda _: False)):
        with pytest.raises(StoreWriteFailed, check=telling("00000000000000000004.log", "closed", doing="append")):
            call()
    assert held(tmp_path) == list(range(6))


def test_a_log_that_begins_at_a_number_goes_on_from_it(tmp_path: Path) -> None:
    with FramedLog.open(tmp_path / "a.log", first=40) as log:
        assert (log.next_sequence, log.append(1, b"x"), log.next_sequence) == (40, 40, 41)
        assert log.size_bytes == (tmp_path / "a.log").stat().st_size
    with FramedLog.open(tmp_path / "a.log", first=7) as log:
        assert log.append(1, b"y") == 41
