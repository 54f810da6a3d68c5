"""The framed log against truncation, bit flips, quoted frames, second writers and a disk that fails."""

from __future__ import annotations

import errno
import os
import random
import re
import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.durable.files import Disk
from esper.durable.log import FramedLog, Scan, iterate, scan
from esper.durable.log_format import PAYLOAD_LIMIT_BYTES, LoadError
from esper.errors import ConfigError, RunDirectoryError, StoreCorrupt, StoreWriteFailed
from esper.ground.workplace import from_here
from esper.testing import telling

RECORDS = [(1, b"first"), (2, b""), (65535, bytes(range(30))), (1, b"\xa5fr\x5a" * 3)]
FILE_HEADER_BYTES = 30


class FailingDisk(Disk):
    """A real disk on which a named call fails with an errno as often as it is told, or writes a few bytes at a time."""

    def __init__(self) -> None:
        self.failures: dict[str, list[int]] = {}
        self.bytes_per_write: int | None = None
        self.calls: list[str] = []

    def _may_fail(self, call: str) -> None:
        self.calls.append(call)
        if queue := self.failures.get(call):
            raise OSError(queue.pop(0), f"planted in {call}")

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        part = data[: self.bytes_per_write]
        written = super().write(descriptor, part, offset)
        self._may_fail("write")  # after the bytes went out: the worst kind, for there is something to take back
        return written

    def truncate(self, descriptor: int, length: int) -> None:
        self._may_fail("truncate")
        super().truncate(descriptor, length)

    def fdatasync(self, descriptor: int) -> None:
        self._may_fail("fdatasync")
        super().fdatasync(descriptor)

    def fsync(self, descriptor: int) -> None:
        self._may_fail("fsync")
        super().fsync(descriptor)

    def sync_folder(self, path: Path) -> None:
        self._may_fail("sync_folder")
        super().sync_folder(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def written(path: Path, records: list[tuple[int, bytes]] = RECORDS) -> Scan:
    with FramedLog.open(path) as log:
        log.append_many(records)
    return scan(path)


def contents(found: Scan) -> list[tuple[int, bytes]]:
    return [(frame.kind, frame.payload) for frame in found.frames]


def damage(found: Scan) -> list[LoadError]:
    return found.errors + ([found.torn_tail] if found.torn_tail else [])


def forged(path: Path, *, version: int, claimed_bytes: int, body: bytes) -> bytes:
    """A frame for the end of the log `path` with a header checksum that holds, made from the written format alone."""
    salt = path.read_bytes()[10:18]
    fields = struct.pack(">4sHHIQ", b"\xa5fr\x5a", version, 1, claimed_bytes, 0)
    header_crc = crc32(fields, crc32(salt + struct.pack(">Q", path.stat().st_size)))
    return fields + struct.pack(">I", header_crc) + body + struct.pack(">I", crc32(body, header_crc))


def flips(start: int, stop: int) -> Iterator[tuple[int, int]]:
    return ((byte, 1 << bit) for byte in range(start, stop) for bit in range(8))


# -- what was appended is read ------------------------------------------------------------------------------------


def test_records_come_back_in_order_with_their_sequence_numbers(path: Path) -> None:
    with FramedLog.open(path, epoch=7) as log:
        assert [log.append(*record) for record in RECORDS] == [0, 1, 2, 3]
        assert log.append_many(RECORDS) == range(4, 8)
        assert log.append_many([]) == range(8, 8)
    found = scan(path)
    assert contents(found) == RECORDS * 2
    assert [frame.sequence for frame in found.frames] == list(range(8))
    assert (found.epoch, found.errors, found.torn_tail) == (7, [], None)
    assert list(iterate(path)) == found.frames


def test_a_record_is_synced_before_append_returns_and_a_batch_is_synced_once(path: Path) -> None:
    disk = FailingDisk()
    with FramedLog.open(path, disk=disk) as log:
        disk.calls.clear()
        log.append(1, b"one")
        assert disk.calls == ["write", "fdatasync"]
        log.append_many(RECORDS)
        assert disk.calls == ["write", "fdatasync"] * 2


def test_reopening_syncs_what_a_dead_writer_may_have_left_unsynced(path: Path) -> None:
    written(path)
    disk = FailingDisk()
    FramedLog.open(path, disk=disk).close()
    assert disk.calls == ["fsync", "sync_folder"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=200)), max_size=4), max_size=4))
def test_the_log_equals_a_list_whatever_is_appended_and_however_often_it_is_reopened(
    batches: list[list[tuple[int, bytes]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.log"
        expected: list[tuple[int, bytes]] = []
        for batch in batches:
            with FramedLog.open(path) as log:
                sequences = log.append_many(batch)
            expected += batch
            assert sequences.stop == len(expected)
            assert contents(scan(path)) == expected


# -- damage -------------------------------------------------------------------------------------------------------


def test_a_log_cut_at_any_byte_keeps_every_earlier_record_and_reports_the_tail(path: Path) -> None:
    whole = written(path)
    data = path.read_bytes()
    ends = [frame.offset for frame in whole.frames[1:]] + [len(data)]
    for length in range(FILE_HEADER_BYTES, len(data)):
        path.write_bytes(data[:length])
        found = scan(path)
        kept = sum(end <= length for end in ends)
        assert found.frames == whole.frames[:kept]
        assert found.errors == []
        torn_from = ends[kept - 1] if kept else FILE_HEADER_BYTES
        if torn_from == length:
            assert found.torn_tail is None
        else:
            assert found.torn_tail is not None
            assert (found.torn_tail.offset, found.torn_tail.length) == (torn_from, length - torn_from)


def test_a_log_cut_anywhere_in_its_last_record_is_mended_by_reopening(path: Path) -> None:
    whole = written(path)
    data, last = path.read_bytes(), whole.frames[-1].offset
    for length in range(last + 1, len(data)):
        path.write_bytes(data[:length])
        with FramedLog.open(path) as log:
            assert log.torn_tail is not None
            assert (log.torn_tail.offset, log.torn_tail.length) == (last, length - last)
            assert path.stat().st_size == last
            assert log.append(9, b"x") == 3
        assert contents(scan(path)) == [*RECORDS[:3], (9, b"x")]
        assert damage(scan(path)) == []


def test_any_bit_flipped_in_a_record_loses_exactly_that_record(path: Path) -> None:
    whole = written(path)
    data = bytearray(path.read_bytes())
    ends = [frame.offset for frame in whole.frames[1:]] + [len(data)]
    for byte, mask in flips(FILE_HEADER_BYTES, len(data)):
        data[byte] ^= mask
        path.write_bytes(data)
        data[byte] ^= mask
        hit = next(n for n, end in enumerate(ends) if byte < end)
        found = scan(path)
        assert found.frames == whole.frames[:hit] + whole.frames[hit + 1 :]
        (error,) = damage(found)
        assert (error.offset, error.offset + error.length) == (whole.frames[hit].offset, ends[hit])
        assert (found.torn_tail is error) == (hit == len(ends) - 1)


def test_a_log_with_any_bit_of_its_header_flipped_is_refused_and_left_as_it_is(path: Path) -> None:
    written(path)
    whole = path.read_bytes()
    for byte, mask in flips(0, FILE_HEADER_BYTES):
        data = bytearray(whole)
        data[byte] ^= mask
        path.write_bytes(data)
        with pytest.raises(StoreCorrupt):
            scan(path)
        with pytest.raises(StoreCorrupt):
            FramedLog.open(path)
        assert path.read_bytes() == data


@pytest.mark.parametrize("length", [0, 5, FILE_HEADER_BYTES - 1])
def test_a_file_without_a_whole_header_is_refused(path: Path, length: int) -> None:
    written(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreCorrupt):
        scan(path)


def test_an_absent_log_cannot_be_scanned(path: Path) -> None:
    with pytest.raises(StoreCorrupt, check=telling("a.log", "No such file")):
        scan(path)
    with pytest.raises(StoreCorrupt, check=telling("a.log", "No such file")):
        next(iterate(path))


def test_damage_between_records_survives_reopening_and_is_reported(path: Path) -> None:
    whole = written(path)
    data = bytearray(path.read_bytes())
    data[whole.frames[1].offset] ^= 1
    path.write_bytes(data)
    with FramedLog.open(path) as log:
        assert [error.offset for error in log.errors] == [whole.frames[1].offset]
        assert log.torn_tail is None
        assert log.append(5, b"later") == 4
    assert [frame.sequence for frame in scan(path).frames] == [0, 2, 3, 4]


def test_random_bytes_behind_the_header_yield_no_record(path: Path) -> None:
    written(path, [])
    header, rng = path.read_bytes(), random.Random(0)
    for noise in [rng.randbytes(20_000), b"\xa5fr\x5a" * 5_000, b"\x00" * 20_000]:
        path.write_bytes(header + noise)
        found = scan(path)
        assert found.frames == []
        assert [(error.offset, error.length) for error in damage(found)] == [(len(header), len(noise))]


def test_records_far_behind_the_damage_are_found_wherever_the_search_window_ends(path: Path) -> None:
    for padding in range(4060, 4075):
        path.unlink(missing_ok=True)
        whole = written(path, [(1, b"\x00" * padding), (2, b"behind")])
        data = bytearray(path.read_bytes())
        data[whole.frames[0].offset] ^= 1
        path.write_bytes(data)
        assert scan(path).frames == whole.frames[1:]


# -- what is not a record of this log -------------------------------------------------------------------------------


def test_a_frame_of_this_log_quoted_in_a_payload_is_not_a_record_even_if_its_carrier_is_damaged(path: Path) -> None:
    written(path, [(1, b"quoted")])
    frame = path.read_bytes()[FILE_HEADER_BYTES:]
    with FramedLog.open(path) as log:
        log.append(2, frame)
        log.append(3, b"after")
    whole = scan(path)
    assert contents(whole) == [(1, b"quoted"), (2, frame), (3, b"after")]

    data = bytearray(path.read_bytes())
    data[whole.frames[1].offset + 13] ^= 1  # the carrier's header: the search then runs through its payload
    path.write_bytes(data)
    assert scan(path).frames == [whole.frames[0], whole.frames[2]]


def test_a_frame_of_another_log_at_its_old_offset_is_not_a_record(tmp_path: Path, path: Path) -> None:
    written(path, [])
    other = tmp_path / "other.log"
    written(other)
    path.write_bytes(path.read_bytes() + other.read_bytes()[FILE_HEADER_BYTES:])
    assert scan(path).frames == []


def test_a_frame_made_by_the_written_format_is_a_record(path: Path) -> None:
    written(path, [])
    path.write_bytes(path.read_bytes() + forged(path, version=1, claimed_bytes=3, body=b"abc"))
    assert contents(scan(path)) == [(1, b"abc")]


def test_a_length_is_not_believed_beyond_the_end_of_the_file(path: Path) -> None:
    written(path, [])
    path.write_bytes(path.read_bytes() + forged(path, version=1, claimed_bytes=PAYLOAD_LIMIT_BYTES, body=b"abc"))
    tracemalloc.start()
    found = scan(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.frames == []
    assert found.torn_tail is not None
    assert found.torn_tail.reason == "the frame is cut short"
    assert peak_bytes < 2**20


def test_a_length_over_the_limit_is_not_read_even_if_the_file_is_that_long(path: Path) -> None:
    written(path, [])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + forged(path, version=1, claimed_bytes=PAYLOAD_LIMIT_BYTES + 1, body=b""))
    os.truncate(path, size + PAYLOAD_LIMIT_BYTES + 100)  # sparse: takes no room on the disk
    (error,) = damage(scan(path))
    assert "over the limit" in error.reason


def test_a_frame_of_a_later_version_is_refused_and_not_cut_off_as_a_torn_tail(path: Path) -> None:
    written(path, [])
    path.write_bytes(path.read_bytes() + forged(path, version=2, claimed_bytes=3, body=b"abc"))
    size = path.stat().st_size
    for read in (scan, FramedLog.open):
        with pytest.raises(StoreCorrupt, check=telling("a.log", "version 2")):
            read(path)
    assert path.stat().st_size == size


def test_a_log_of_a_later_version_is_refused(path: Path) -> None:
    fields = struct.pack(">8sHQQ", b"ESPERLOG", 2, 0, 0)
    path.write_bytes(fields + struct.pack(">I", crc32(fields)))
    with pytest.raises(StoreCorrupt, check=telling("a.log", "version 2")):
        scan(path)


# -- writers --------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_by_name_until_the_first_has_closed(path: Path) -> None:
    with FramedLog.open(path) as log:
        with pytest.raises(
            RunDirectoryError, check=telling("another writer", field="log", value=re.compile("/a\\.log$"))
        ):
            FramedLog.open(path)
        log.append(1, b"still mine")
    FramedLog.open(path).close()
    assert contents(scan(path)) == [(1, b"still mine")]


def test_a_copy_of_the_descriptor_in_a_forked_child_does_not_keep_a_closed_log_locked(path: Path) -> None:
    class Copying(Disk):
        def lock(self, descriptor: int) -> None:
            self.copy = os.dup(descriptor)  # shares the lock, as a fork's copy does
            super().lock(descriptor)

    disk = Copying()
    FramedLog.open(path, disk=disk).close()
    try:
        with FramedLog.open(path) as log:
            assert log.append(1, b"mine") == 0
    finally:
        os.close(disk.copy)


def test_a_log_of_another_epoch_is_not_written(path: Path) -> None:
    FramedLog.open(path, epoch=2).close()
    with pytest.raises(RunDirectoryError, check=telling("epoch 2", field="epoch", value=1)):
        FramedLog.open(path, epoch=1)


def test_a_closed_log_says_that_it_was_closed(path: Path) -> None:
    log = FramedLog.open(path)
    log.close()
    log.close()
    with pytest.raises(StoreWriteFailed, check=telling("a.log", "closed", doing="append")):
        log.append(1, b"late")


@pytest.mark.parametrize(
    ("kind", "payload"), [(-1, b""), (65536, b""), (1, bytes(PAYLOAD_LIMIT_BYTES + 1))], ids=["low", "high", "long"]
)
def test_a_record_that_could_not_be_read_back_is_refused_before_anything_is_written(
    path: Path, kind: int, payload: bytes
) -> None:
    with FramedLog.open(path) as log:
        with pytest.raises(StoreWriteFailed):
            log.append_many([(1, b"good"), (kind, payload)])
        assert log.append(1, b"next") == 0
    assert contents(scan(path)) == [(1, b"next")]


# -- a disk that fails ------------------------------------------------------------------------------------------------


def test_short_writes_are_continued(path: Path) -> None:
    disk = FailingDisk()
    disk.bytes_per_write = 7
    with FramedLog.open(path, disk=disk) as log:
        log.append_many(RECORDS)
    assert contents(scan(path)) == RECORDS


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_write_is_taken_back_and_the_log_goes_on(path: Path, code: int) -> None:
    disk = FailingDisk()
    with FramedLog.open(path, disk=disk) as log:
        log.append(1, b"kept")
        size = path.stat().st_size
        disk.failures["write"] = [code]
        with pytest.raises(StoreWriteFailed) as caught:
            log.append(2, b"a long record that is lost")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == code
        assert path.stat().st_size == size
        assert log.append(3, b"next") == 1
    found = scan(path)
    assert contents(found) == [(1, b"kept"), (3, b"next")]
    assert damage(found) == []


def test_a_failed_sync_closes_the_log_for_ever_and_is_not_tried_again(path: Path) -> None:
    disk = FailingDisk()
    with FramedLog.open(path, disk=disk) as log:
        log.append(1, b"kept")
        disk.failures["fdatasync"] = [errno.EIO]
        with pytest.raises(StoreWriteFailed):
            log.append(2, b"doubtful")
        disk.calls.clear()
        with pytest.raises(StoreWriteFailed, check=telling("a.log", "no more records", doing="append")):
            log.append(3, b"refused")
        assert disk.calls == []
    found = scan(path)
    assert contents(found) == [(1, b"kept")]
    assert damage(found) == []


@pytest.mark.parametrize("call", ["truncate", "fsync"])
def test_a_log_whose_failed_write_cannot_be_taken_back_takes_no_more_records(path: Path, call: str) -> None:
    disk = FailingDisk()
    with FramedLog.open(path, disk=disk) as log:
        log.append(1, b"kept")
        disk.failures |= {"write": [errno.ENOSPC], call: [errno.EIO]}
        with pytest.raises(StoreWriteFailed) as caught:
            log.append(2, b"lost")
        assert caught.value.__cause__ is not None
        assert "taking the record back failed too" in caught.value.__cause__.__notes__[0]
        with pytest.raises(StoreWriteFailed, check=telling("no more records", doing="append")):
            log.append(3, b"refused")


def test_an_interrupted_write_leaves_nothing_for_a_later_record_to_meet(path: Path) -> None:
    class Interrupted(Disk):
        armed = False

        def write(self, descriptor: int, data: memoryview, offset: int) -> int:
            written = super().write(descriptor, data, offset)
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return written

    disk = Interrupted()
    with FramedLog.open(path, disk=disk) as log:
        disk.armed = True
        with pytest.raises(KeyboardInterrupt):
            log.append_many([(1, b""), (2, b"a phantom, were it left behind a record of equal length")])
        log.append(3, b"")
    assert contents(scan(path)) == [(3, b"")]


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def move_its_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("harm", [remove, replace, cut, lengthen, move_its_folder])
def test_a_log_that_another_program_changed_says_so_at_the_next_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path("logs", "a.log")
    with FramedLog.open(path) as log:
        monkeypatch.chdir("/")
        log.append(1, b"acknowledged")
        harm(tmp_path / path)
        with pytest.raises(StoreWriteFailed, check=telling("logs/a.log", doing="append")):
            log.append(2, b"into a file that nobody finds")


def test_a_relative_log_lies_where_its_command_began_though_the_working_directory_was_left_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left").mkdir()
    monkeypatch.chdir(tmp_path)
    with from_here():
        monkeypatch.chdir(tmp_path / "left")
        (tmp_path / "left").rmdir()
        with FramedLog.open(Path("a.log")) as log:
            log.append(1, b"found")
    assert [frame.payload for frame in scan(tmp_path / "a.log").frames] == [b"found"]
    with pytest.raises(ConfigError, check=telling(field="working directory")):
        FramedLog.open(Path("a.log"))


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_log_that_cannot_be_created_leaves_no_file(path: Path, call: str) -> None:
    disk = FailingDisk()
    disk.failures[call] = [errno.ENOSPC]
    with pytest.raises(StoreWriteFailed):
        FramedLog.open(path, disk=disk)
    assert list(path.parent.iterdir()) == []
    FramedLog.open(path).close()


def test_a_log_whose_opening_failed_is_not_left_locked(path: Path) -> None:
    written(path)
    disk = FailingDisk()
    disk.failures["fsync"] = [errno.EIO]
    with pytest.raises(StoreWriteFailed, check=telling("a.log", doing="recovery at opening")):
        FramedLog.open(path, disk=disk)
    FramedLog.open(path).close()
