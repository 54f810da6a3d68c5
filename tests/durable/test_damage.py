"""Damage to files that nobody was writing: every bit and every length of a log, of a log in segments, of a stream."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checks import CHECKS, FILE_HEADER_BYTES, flips, refused
from code_under_test import REAL, Code
from crash_disk import FOLDER, CrashDisk, State

from esper.durable.log_format import Frame
from esper.durable.segments import SegmentedLog, iterate_segments
from esper.errors import StoreCorrupt

KINDS = [(kind, b"payload %d" % kind) for kind in (0, 1, 2, 11, 255, 256, 0xFFFF)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_without_any_crash(check: Callable[[Code], None]) -> None:
    assert check(REAL) is None


@pytest.fixture(scope="module")
def segmented() -> State:
    disk = CrashDisk()
    with SegmentedLog.open(FOLDER, limit_bytes=100, disk=disk) as log:
        for record in KINDS:
            log.append(*record)
    state = {name: data for name, data in disk.contents().items() if name.endswith(".log")}
    assert len(state) == 4
    return state


def payloads(state: State) -> list[bytes]:
    found = iterate_segments(FOLDER, disk=CrashDisk(state))
    return [one.payload for _, one in found if isinstance(one, Frame)]


def test_any_bit_flipped_in_any_segment_loses_exactly_one_record_of_any_kind(segmented: State) -> None:
    whole = payloads(segmented)
    lost = set()
    for name, data in segmented.items():
        for byte, flipped in flips(data):
            damaged = segmented | {name: flipped}
            if byte < FILE_HEADER_BYTES:
                refused(StoreCorrupt, lambda damaged=damaged: payloads(damaged))
            else:
                found = payloads(damaged)
                gone = [payload for payload in whole if payload not in found]
                assert len(gone) == 1
                assert found == [payload for payload in whole if payload not in gone]
                lost.update(gone)
    assert lost == set(whole)


def test_the_last_segment_cut_at_any_byte_goes_on_where_it_was_cut(segmented: State) -> None:
    last = max(segmented)
    whole = payloads(segmented)
    for length in range(FILE_HEADER_BYTES, len(segmented[last])):
        disk = CrashDisk(segmented | {last: segmented[last][:length]})
        kept = payloads(disk.contents())
        assert kept == whole[: len(kept)]
        with SegmentedLog.open(FOLDER, limit_bytes=100, disk=disk) as log:
            assert log.append(7, b"next") == len(kept)
        assert payloads({n: d for n, d in disk.contents().items() if n.endswith(".log")}) == [*kept, b"next"]
