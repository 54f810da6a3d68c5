"""The folder of the queue in a bad state: a full disk, damaged records, two owners, and what a stranger left there."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pytest
from queues import CONDUCTOR, FILE, WEBHOOK, QuickDisk, due, held, opened, signal

from esper.durable.log import FramedLog, scan
from esper.durable.segments import segments
from esper.emergency import queue as queue_module
from esper.emergency.queue_state import REMEMBERED
from esper.emergency.reading import MOST_CAPACITY, MOST_FRAMES, MOST_LOG_BYTES, read_queue
from esper.emergency.records import Acknowledged, Held, Put, decoded
from esper.emergency.reserve import Reserve
from esper.emergency.room import GROWTH_BYTES, MOST_HELD_BYTES, REASON_BYTES, Room
from esper.errors import DependencyViolationError, EmergencyQueueFull, RunDirectoryError, StoreCorrupt, StoreWriteFailed
from esper.leyline.signals import EmergencySignal, Level
from esper.telemetry.context import use
from esper.telemetry.setup import Telemetry
from esper.testing import FakeClock, telling


class SmallDisk(QuickDisk):
    """A disk with room for so many bytes in one folder."""

    def __init__(self, folder: Path, room_bytes: int) -> None:
        self.folder, self.room_bytes = folder, room_bytes

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        grows = max(0, offset + len(data) - os.fstat(descriptor).st_size)
        if used(self.folder) + grows > self.room_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(descriptor, data, offset)

    def allocate(self, descriptor: int, length: int) -> None:
        """Blocks are written one by one, as the C library does where the file system has no call for it."""
        for offset in range(os.fstat(descriptor).st_size, length, 4096):
            self.write(descriptor, memoryview(bytes(min(4096, length - offset))), offset)


class UnreadDisk(QuickDisk):
    """A disk of which no file may be read."""

    def reader(self, descriptor: int, *, owned: bool = False) -> BinaryIO:
        raise AssertionError(f"descriptor {descriptor} is read, owned: {owned}")


def used(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


# -- a full disk ---------------------------------------------------------------------------------------------------


def test_what_was_accepted_is_acknowledged_on_a_full_disk(tmp_path: Path) -> None:
    disk, ids = SmallDisk(tmp_path, 600_000), [f"{n:0100}" for n in range(300)]
    with opened(tmp_path, CONDUCTOR, FILE, capacity=1024, disk=disk) as queue:
        for signal_id in ids:
            queue.publish(signal(signal_id))
        disk.room_bytes = used(tmp_path)
        with pytest.raises(StoreWriteFailed):
            queue.publish(signal("b"))
        for signal_id in ids[1:]:
            queue.acknowledge("conductor", [signal_id])
            queue.acknowledge("file", [signal_id])
        assert (tmp_path / "reserve").stat().st_size == 0
        queue.drop([ids[0]], "an operator can make room, too")
        assert len(queue) == 0
    with opened(tmp_path, CONDUCTOR, FILE, capacity=1024, disk=disk) as queue:
        assert len(queue) == 0
        disk.room_bytes = 600_000
        assert queue.publish(signal("later")) == len(ids) + 1
        assert (tmp_path / "reserve").stat().st_size > 0  # it is taken again


def test_the_blocks_of_a_growth_that_fails_are_given_back(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path, 2**17 - 1)  # all blocks of a second step but the last
    reserve = Reserve.open(tmp_path / "reserve", disk=disk)
    reserve.grow(2**16)
    with pytest.raises(StoreWriteFailed):
        reserve.grow(2**16 + 1)
    assert used(tmp_path) == reserve.size_bytes == 2**16
    disk.room_bytes += 1
    reserve.grow(2**16 + 1)
    assert used(tmp_path) == reserve.size_bytes == 2**17


def test_a_lost_reserve_is_filled_again_when_the_queue_is_opened(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path, 600_000)
    with opened(tmp_path, disk=disk) as queue:
        queue.publish(signal("a"))
    (tmp_path / "reserve").unlink()  # a copy of the log has none
    with opened(tmp_path, disk=disk) as queue:
        disk.room_bytes = used(tmp_path)
        queue.acknowledge("conductor", ["a"])
        disk.room_bytes = 600_000
        queue.publish(signal("b"))
    (tmp_path / "reserve").unlink()
    disk.room_bytes = used(tmp_path) + 100  # for the lease
    with opened(tmp_path, disk=disk) as queue:  # a full disk does not stop the opening
        assert held(queue) == ["b"]


def test_a_reserve_that_a_copy_has_emptied_of_its_blocks_is_allocated_again_and_it_is_told(tmp_path: Path) -> None:
    folder, reserve = tmp_path / "queue", tmp_path / "queue" / "reserve"
    with opened(folder) as queue:
        queue.publish(signal("a"))
    size = reserve.stat().st_size
    assert reserve.stat().st_blocks * 512 >= size
    os.truncate(reserve, 0)
    os.truncate(reserve, size)  # as `cp --sparse=always` writes it
    with Telemetry.start(tmp_path, "emergency") as telemetry, use(telemetry):
        for _ in range(2):
            opened(folder).close()
            assert reserve.stat().st_blocks * 512 >= reserve.stat().st_size == size
    (event,) = (tmp_path / "severe-events.jsonl").read_text().splitlines()
    told = json.loads(event)
    assert (told["name"], told["fields"]["allocated_bytes"]) == ("emergency_reserve_hollow", 0)


def test_a_clock_before_1970_stops_no_attempt(tmp_path: Path) -> None:
    class Early(FakeClock):
        def now(self) -> datetime:
            return datetime(1960, 1, 1, tzinfo=UTC)

    with opened(tmp_path, FILE, clock=Early()) as queue:
        queue.publish(signal("a"))
        queue.attempt("file", ["a"])
        assert queue.failed("file", "a", "down") is not None


def test_a_full_disk_is_a_severe_event_and_stops_no_attempt(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    folder.mkdir()
    disk = SmallDisk(folder, 200_000)
    with (
        Telemetry.start(tmp_path, "emergency") as telemetry,
        use(telemetry),
        opened(folder, CONDUCTOR, FILE, disk=disk) as queue,
    ):
        queue.publish(signal("a"))
        disk.room_bytes = 0
        queue.attempt("file", ["a"])
        assert due(queue, "file") == []
        with pytest.raises(StoreWriteFailed):
            queue.publish(signal("b"))
        assert held(queue) == ["a"]
        disk.room_bytes = used(folder)
        queue.acknowledge("file", ["a"])
    told = [json.loads(line) for line in (tmp_path / "severe-events.jsonl").read_text().splitlines()]
    names = [event["name"] for event in told]
    assert names == ["emergency_queue_disk_full", "emergency_signal_rejected", "emergency_queue_disk_full"]
    assert told[1]["fields"]["signal_id"] == "b"
    assert telemetry.counters.total("esper.signal.rejected") == 1


# -- damage ---------------------------------------------------------------------------------------------------------


def test_a_damaged_record_costs_one_signal_and_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    with opened(folder, CONDUCTOR, FILE) as queue:
        for name in "abc":
            queue.publish(signal(name))
    (log,) = segments(folder)
    data = bytearray(log.read_bytes())
    damaged = scan(log).frames[1]
    data[damaged.offset + 60] ^= 1
    log.write_bytes(data)
    with (
        Telemetry.start(tmp_path, "emergency") as telemetry,
        use(telemetry),
        opened(folder, CONDUCTOR, FILE) as queue,
    ):
        assert held(queue) == ["a", "c"]
        assert [(found.file, found.offset) for found in queue.damage] == [(log, damaged.offset)]
        assert queue.publish(signal("d")) == 4
    assert telemetry.counters.total("esper.load.errors") == 1
    (line,) = (tmp_path / "severe-events.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "emergency_queue_damaged"
    assert json.loads(line)["fields"]["offset"] == damaged.offset
    with opened(folder, CONDUCTOR, FILE, compact_bytes=1) as queue:
        queue.publish(signal("e"))
        assert held(queue) == ["a", "c", "d", "e"]
        assert not log.exists()
        assert (folder / "damaged.log").read_bytes().startswith(data)  # for people
    with opened(folder, CONDUCTOR, FILE) as queue:
        assert not queue.damage


def test_a_torn_append_is_told_and_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as queue:
        queue.publish(signal("a"))
        queue.publish(signal("b"))
    (log,) = segments(tmp_path)
    log.write_bytes(log.read_bytes()[:-1])
    with opened(tmp_path) as queue:
        assert held(queue) == ["a"]
        assert len(queue.damage) == 1


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(1, b"{}"), (1, b"\xff"), (3, b'{"subscriber": "file", "ids": [1]}'), (99, b"{}"), (9, b"[" * 10_000)],
)
def test_a_whole_record_that_is_none_is_damage(tmp_path: Path, kind: int, payload: bytes) -> None:
    with opened(tmp_path) as queue:
        queue.publish(signal("a"))
    (log,) = segments(tmp_path)
    with FramedLog.open(log, disk=QuickDisk()) as raw:
        raw.append(kind, payload)
        raw.append(*Put(order=2, to=("conductor",), signal=signal("b")).encoded())
    with opened(tmp_path) as queue:
        assert held(queue) == ["a", "b"]
        assert len(queue.damage) == 1


def test_many_damaged_places_are_a_few_events_and_their_number(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    with opened(folder) as queue:
        queue.publish(signal("a"))
    (log,) = segments(folder)
    with FramedLog.open(log, disk=QuickDisk()) as raw:
        raw.append_many([(99, b"")] * 1000)
    with Telemetry.start(tmp_path, "emergency") as telemetry, use(telemetry), opened(folder) as queue:
        assert held(queue) == ["a"]
    told = [json.loads(line)["fields"] for line in (tmp_path / "severe-events.jsonl").read_text().splitlines()]
    assert len(told) == 17
    assert told[-1] == {"more": 984}


# -- owners ---------------------------------------------------------------------------------------------------------


def test_a_second_owner_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    with opened(tmp_path) as queue:
        queue.publish(signal("a"))
        with pytest.raises(RunDirectoryError, match=f"pid {os.getpid()}"):
            opened(tmp_path)
        assert [one.signal.signal_id for one in read_queue(tmp_path).waiting()] == ["a"]
        queue.publish(signal("b"))
    with opened(tmp_path) as queue:
        assert held(queue) == ["a", "b"]


# -- each log that the queue writes can be read again ------------------------------------------------------------------

MAGIC = b"\xa5fr\x5a"


def test_no_text_of_a_signal_looks_like_the_beginning_of_a_record(tmp_path: Path) -> None:
    text = "\u00e5frZ"
    assert MAGIC in text.encode()
    with opened(tmp_path, FILE) as queue:
        queue.publish(signal(text, reason=text * 100, attributes={text: text}))
        queue.failed("file", text, text)
        queue.reject(text, text)
    (log,) = segments(tmp_path)
    assert log.read_bytes().count(MAGIC) == len(scan(log).frames) == 3
    assert read_queue(tmp_path).waiting()[0].signal.reason == text * 100


@pytest.mark.parametrize("character", ["x", "\x01", "\u00e5", "\U0001f600"])
def test_a_compacted_log_needs_no_more_than_was_counted(tmp_path: Path, character: str) -> None:
    """All three subscribers give up, for the longest reasons."""
    one = signal(character * 500, reason=character * 1500)
    receivers = [replace(FILE, name=f"{name:s<64}", attempts=1) for name in "abc"]
    with opened(tmp_path, *receivers, compact_bytes=1) as queue:
        queue.publish(one)
        for receiver in receivers:
            queue.failed(receiver.name, one.signal_id, character * 5000)
        queue.reject("y", "")  # compacts
        assert {len(json.dumps(letter.why)) // 12 for letter in queue.dead_letters()} == {REASON_BYTES // 12}
    held = next(frame for frame in scan(segments(tmp_path)[-1]).frames if frame.kind == Held.KIND)
    room = Room(receiver.name for receiver in receivers)
    counted = room.needed_bytes(one.signal_id, one.json_and_sha256()[0])
    assert held.end - held.offset + len(json.dumps(one.signal_id)) <= counted


def test_a_queue_whose_signals_need_too_many_bytes_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = Room(["conductor"]).needed_bytes("a", signal("a").json_and_sha256()[0])
    monkeypatch.setattr(queue_module, "MOST_HELD_BYTES", 4 * needed)
    monkeypatch.setattr(queue_module, "HALT_BYTES", 2 * needed)
    for name in "ab":  # the queue counts again what it holds when it is opened
        with opened(tmp_path) as queue:
            queue.publish(signal(name))
    with opened(tmp_path) as queue:
        with pytest.raises(EmergencyQueueFull, check=telling(f"{4 * needed} bytes")):
            queue.publish(signal("c"))
        queue.publish(signal("h", Level.HALT))
        queue.acknowledge("conductor", ["a", "h"])
        queue.publish(signal("c"))
        assert held(queue) == ["b", "c"]


def test_the_bound_of_the_reader_follows_from_those_of_the_writer() -> None:
    """Three copies fit: the log, that of a compaction that crashed, and that of the next compaction."""
    finished = REMEMBERED * (6 * 1024 + 256)
    compacted = MOST_HELD_BYTES + finished + 4 * 2**20
    assert 3 * (compacted + GROWTH_BYTES) <= MOST_LOG_BYTES
    assert 2 * GROWTH_BYTES // 41 + 2 * MOST_CAPACITY <= MOST_FRAMES  # 41 bytes: the smallest record


def test_a_segment_that_a_crash_left_counts_for_the_next_compaction(tmp_path: Path) -> None:
    class Crash(QuickDisk):
        def unlink(self, path: Path) -> None:
            if path in segments(tmp_path):
                raise OSError(errno.EIO, "Input/output error", str(path))
            super().unlink(path)

    with opened(tmp_path, compact_bytes=1500, disk=Crash()) as queue:
        queue.publish(signal("a", reason="x" * 1200))
        with pytest.raises(StoreWriteFailed):
            queue.acknowledge("conductor", ["a"])
    old, new = (log.stat().st_size for log in segments(tmp_path))
    with opened(tmp_path, compact_bytes=(new + old + new) // 2) as queue:
        queue.publish(signal("next"))
    assert len(segments(tmp_path)) == 1


# -- what a stranger left ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MOST_LOG_BYTES + 1, 2 * 2**30])
def test_a_huge_tail_is_refused_at_once(tmp_path: Path, size: int) -> None:
    with opened(tmp_path) as queue:
        queue.publish(signal("a"))
    (log,) = segments(tmp_path)
    os.truncate(log, size)
    for read in (lambda: opened(tmp_path, disk=UnreadDisk()), lambda: read_queue(tmp_path, disk=UnreadDisk())):
        with pytest.raises(StoreCorrupt, check=telling(str(MOST_LOG_BYTES))):
            read()
    assert log.stat().st_size == size


def test_a_tail_of_beginnings_of_records_is_refused_at_once(tmp_path: Path) -> None:
    """Each would be looked at by itself, which takes a second for a MiB."""
    with opened(tmp_path) as queue:
        queue.publish(signal("a"))
    (log,) = segments(tmp_path)
    log.write_bytes(log.read_bytes() + b"\xa5fr\x5a" * (MOST_FRAMES + 1))
    for read in (lambda: opened(tmp_path), lambda: read_queue(tmp_path)):
        with pytest.raises(StoreCorrupt, check=telling(str(MOST_FRAMES))):
            read()


def test_more_signals_than_any_queue_holds_are_refused(tmp_path: Path) -> None:
    one = signal("a")
    puts = [
        Put(order=n + 1, to=("conductor",), signal=one.model_copy(update={"signal_id": f"s{n}"})).encoded()
        for n in range(MOST_CAPACITY + 1)
    ]
    with FramedLog.open(tmp_path / f"{0:020d}.log", disk=QuickDisk()) as raw:
        raw.append_many(puts)
    with pytest.raises(StoreCorrupt, check=telling(str(MOST_CAPACITY))):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["0" * 20 + ".log", "lease", "reserve"])
def test_a_link_or_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    folder, other = tmp_path / "queue", tmp_path / "other"
    folder.mkdir()
    other.write_bytes(b"mine")
    (folder / name).symlink_to(other)
    with pytest.raises((StoreCorrupt, StoreWriteFailed, RunDirectoryError), check=telling(str(folder))):
        opened(folder)
    assert other.read_bytes() == b"mine"
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises((StoreCorrupt, StoreWriteFailed, RunDirectoryError), check=telling(str(folder))):
        opened(folder)


def test_the_log_behind_a_link_is_not_read(tmp_path: Path) -> None:
    """Another log of the same user is no part of this queue, even if it is a whole one."""
    opened(tmp_path / "other").close()
    (log,) = segments(tmp_path / "other")
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / log.name).symlink_to(log)
    with pytest.raises(StoreCorrupt, check=telling("symbolic link")):
        read_queue(tmp_path / "queue")


def test_signals_for_a_subscriber_that_is_gone_are_dropped_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    with opened(folder, CONDUCTOR, FILE) as queue:
        queue.publish(signal("a"))
        queue.acknowledge("conductor", ["a"])
    with (
        Telemetry.start(tmp_path, "emergency") as telemetry,
        use(telemetry),
        opened(folder, CONDUCTOR, WEBHOOK) as queue,
    ):
        assert len(queue) == 0
        assert due(queue, "webhook") == []  # it was no subscriber then
    event = json.loads((tmp_path / "severe-events.jsonl").read_text())
    assert event["name"] == "emergency_signal_dropped"
    assert event["fields"] == {
        "signal_id": "a",
        "subscriber": "file",
        "why": "the subscriber is not configured any more",
    }


# -- what grows ------------------------------------------------------------------------------------------------------


def test_the_log_and_the_reserve_do_not_grow_with_what_is_done(tmp_path: Path) -> None:
    with opened(tmp_path, CONDUCTOR, FILE, compact_bytes=20_000) as queue:
        sizes = []
        for n in range(600):
            queue.publish(signal(f"s{n}", Level.HALT if n % 3 else Level.NOTICE))
            queue.attempt("file", [f"s{n}"])
            for name in ("conductor", "file"):
                queue.acknowledge(name, [f"s{n}"])
            sizes.append(used(tmp_path))
        assert len(segments(tmp_path)) == 1
        ids_bytes = 600 * 90
        assert max(sizes) < 65_536 + 20_000 + 2 * ids_bytes
    with opened(tmp_path, CONDUCTOR, FILE) as queue:
        assert queue.publish(signal("s599", Level.HALT if 599 % 3 else Level.NOTICE)) == 600


def test_a_signal_has_one_checksum_and_its_record_one_content_in_every_version() -> None:
    """A later version that computed either in another way would refuse what an earlier one wrote."""
    one = signal(
        "\u00e51", Level.HALT, attributes={"z": 1e-7, "a": True, "most": 2**53 - 1, "t": "\x7f"}, monotonic_ns=7
    )
    bare = signal("a")
    assert one.checksum == "eff9d8d95b4eefdd7e06ffc215f4967077b3f897f2d583559c2c773e8ae8d420"
    assert bare.checksum == "2177e0be47785fa396efa008ed73a6e1e51d6d13a71213a92a48e27adfaa538f"
    for each in (one, bare):
        json_text, sha256 = each.json_and_sha256()
        record = Put(order=7, to=("conductor", "\u00e5"), signal=each)
        quick = record.encoded_with(json_text)
        assert decoded(*quick) == decoded(*record.encoded()) == record
        assert (json.loads(json_text), sha256) == (json.loads(each.model_dump_json()), each.checksum)
        assert quick[1].isascii()


def test_a_signal_without_its_own_checksum_is_refused(tmp_path: Path) -> None:
    one = signal("a")
    forged = one.model_copy(update={"reason": "other"})
    bare = EmergencySignal(**{name: getattr(one, name) for name in EmergencySignal.model_fields if name != "checksum"})
    with opened(tmp_path) as queue:
        for wrong, told in ((forged, "does not fit"), (bare, "no checksum")):
            with pytest.raises(DependencyViolationError, match=told):
                queue.publish(wrong)
        assert len(queue) == 0
        assert queue.publish(one) == 1
        kinds = [frame.kind for frame in scan(segments(tmp_path)[0]).frames]
        assert kinds == [5, 5, Put.KIND]
        queue.acknowledge("conductor", ["a", "a"])
        queue.acknowledge("conductor", ["a"])
        assert scan(segments(tmp_path)[0]).frames[-1].kind == Acknowledged.KIND
        assert len(scan(segments(tmp_path)[0]).frames) == 4
