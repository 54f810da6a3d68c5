"""The framed log on a real disk: its records, its writers, a disk that fails. Damage: test_damage.py."""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from checks import RECORDS, forged

from esper.durable.files import Disk
from esper.durable.log import FramedLog, Scan, iterate, scan
from esper.durable.log_format import PAYLOAD_LIMIT_BYTES, LoadError
from esper.errors import ConfigError, RunDirectoryError, StoreCorrupt, StoreWriteFailed
from esper.ground.workplace import from_here
from esper.testing import telling


class FailingDisk(Disk):
    """A real disk on which a named call fails with an errno as often as it is told."""

    def __init__(self) -> None:
        self.failures: dict[str, list[int]] = {}
        self.calls: list[str] = []

    def _may_fail(self, call: str) -> None:
        self.calls.append(call)
        if queue := self.failures.get(call):
            raise OSError(queue.pop(0), f"planted in {call}")

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        written = super().write(descriptor, data, offset)
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


# -- damage -------------------------------------------------------------------------------------------------------


def test_an_absent_log_cannot_be_scanned(path: Path) -> None:
    with pytest.raises(StoreCorrupt, check=telling("a.log", "No such file")):
        scan(path)
    with pytest.raises(StoreCorrupt, check=telling("a.log", "No such file")):
        next(iterate(path))


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


def test_a_frame_made_by_the_written_format_is_a_record(path: Path) -> None:
    written(path, [])
    path.write_bytes(forged(path.read_bytes(), version=1, claimed_bytes=3, body=b"abc"))
    assert contents(scan(path)) == [(1, b"abc")]


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


def replace(path: Path) -> None:
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole)


HARMS: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "replaced": replace,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "lengthened": lambda path: os.truncate(path, path.stat().st_size + 1),
    "its folder moved": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
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
