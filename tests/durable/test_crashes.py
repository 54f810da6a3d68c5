"""Every crash that the shim can think of, recovered with the real code; and the shim itself, against a real disk."""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest
from code_under_test import REAL
from crash_disk import FOLDER, CrashDisk, State
from queue_workload import ALL_WORKLOADS
from torture import Torture
from workloads import LOG, WORKLOADS, Broken, Mark, Promises, Workload

from esper.durable.files import Disk

SHORT: dict[str, tuple[int, int, int, int]] = {
    "log": (2000, 10, 60, 20_000),
    "failing sync": (2000, 10, 60, 1_500),
    "files": (1000, 20, 20, 10_000),
    "saves": (600, 50, 20, 40_000),
    "segments": (120, 60, 0, 30_000),
    "queue": (1, 400, 0, 1_500),
}
"""Workload -> states at each point, one in how many crashes twice, bytes more in each record, and the least that this
must come to: distinct states, each recovered once."""

LONG = {
    "log": (6000, 3, (0, 60, 200), 200_000),
    "failing sync": (6000, 3, (0, 60, 200), 20_000),
    "files": (6000, 5, (0, 20, 60), 50_000),
    "saves": (3000, 50, (0, 20, 40), 280_000),
    "segments": (1500, 60, (0, 12, 30, 50, 70, 90), 500_000),
    "queue": (400, 300, (0, 40), 250_000),
}


QUICK = {"log", "failing sync", "files", "queue"}
"""What `make test` makes of them; `make check` makes all."""


@pytest.mark.parametrize(
    "workload",
    [pytest.param(one, id=one.name, marks=[] if one.name in QUICK else [pytest.mark.slow]) for one in ALL_WORKLOADS],
)
def test_after_any_crash_all_that_was_acknowledged_is_there_and_nothing_else(workload: Workload) -> None:
    per_point, nested_every, extra_bytes, least = SHORT[workload.name]
    tally = Torture(REAL, workload, per_point, nested_every, extra_bytes).all()
    print(f"{workload.name}: {tally.states} distinct states at {tally.points} points")
    assert tally.states >= least


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workload", ALL_WORKLOADS, ids=lambda workload: workload.name)
def test_after_a_million_crashes_all_that_was_acknowledged_is_there(workload: Workload) -> None:
    per_point, nested_every, sizes, least = LONG[workload.name]
    found = [Torture(REAL, workload, per_point, nested_every, size).all() for size in sizes]
    states = sum(tally.states for tally in found)
    print(f"{workload.name}: {states} distinct states at {sum(tally.points for tally in found)} points")
    assert states >= least


def test_the_counts_are_those_that_are_asked_for() -> None:
    assert sum(least for *_, least in SHORT.values()) >= 100_000
    assert sum(least for *_, least in LONG.values()) >= 1_000_000
    assert SHORT.keys() == LONG.keys() == {workload.name for workload in ALL_WORKLOADS}


# -- the shim itself --------------------------------------------------------------------------------------------------


def left(disk: CrashDisk) -> list[State]:
    return list(disk.states(random.Random(0), 10_000))


def synced_file(data: bytes) -> tuple[CrashDisk, int]:
    disk = CrashDisk({"f": data})
    return disk, disk.open(FOLDER / "f", os.O_RDWR)


def test_an_unsynced_write_may_be_lost_kept_or_torn_at_any_byte() -> None:
    disk, descriptor = synced_file(b"old")
    disk.write(descriptor, memoryview(b"NEW!"), 0)
    contents = {state["f"] for state in left(disk)}
    assert {b"old", b"NEW!", b"Nld", b"NEd", b"olW!", b"oEW!", b"NEW\0"} <= contents
    disk.fdatasync(descriptor)
    assert [state["f"] for state in left(disk)] == [b"NEW!"]


def test_what_a_torn_write_leaves_may_be_another_log_s_bytes() -> None:
    disk = CrashDisk({"f": b"abc"}, stale=b"stale bytes")
    disk.write(disk.open(FOLDER / "f", os.O_RDWR), memoryview(b"defg"), 3)
    assert {b"abcd", b"abcde b", b"abclefg", b"abcd\0\0\0"} <= {state["f"] for state in left(disk)}


def test_two_unsynced_writes_may_be_kept_in_any_order() -> None:
    disk, descriptor = synced_file(b"")
    disk.write(descriptor, memoryview(b"a"), 0)
    disk.write(descriptor, memoryview(b"b"), 1)
    assert {state["f"] for state in left(disk)} == {b"", b"a", b"\0b", b"ab"}


def test_a_truncation_outlives_a_crash_only_after_an_fsync() -> None:
    disk, descriptor = synced_file(b"long")
    disk.truncate(descriptor, 1)
    disk.fdatasync(descriptor)
    assert {state["f"] for state in left(disk)} == {b"l", b"long"}
    disk.fsync(descriptor)
    assert {state["f"] for state in left(disk)} == {b"l"}


def test_a_name_outlives_a_crash_only_after_a_sync_of_the_folder() -> None:
    disk, descriptor = synced_file(b"x")
    disk.fsync(descriptor)
    disk.rename(FOLDER / "f", FOLDER / "g")
    assert left(disk) == [{"g": b"x"}, {"f": b"x"}]
    disk.link(FOLDER / "g", FOLDER / "h")
    assert {frozenset(state) for state in left(disk)} == {
        frozenset(names) for names in (("f",), ("g",), ("f", "h"), ("g", "h"))
    }
    disk.unlink(FOLDER / "g")
    disk.sync_folder(FOLDER)
    assert left(disk) == [{"h": b"x"}]


def test_a_renamed_file_that_was_not_synced_may_be_empty() -> None:
    disk, _ = synced_file(b"old")
    descriptor = disk.open(FOLDER / "t", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    disk.write(descriptor, memoryview(b"new"), 0)
    disk.rename(FOLDER / "t", FOLDER / "f")
    disk.sync_folder(FOLDER)
    assert {b"", b"new", b"n", b"n\0\0"} <= {state["f"] for state in left(disk)}
    assert b"old" not in {state["f"] for state in left(disk)}


def test_what_a_failed_sync_lost_is_not_saved_by_the_next() -> None:
    disk, descriptor = synced_file(b"")
    disk.write(descriptor, memoryview(b"a"), 0)
    disk.faults = {"fsync": 0}
    with pytest.raises(OSError, match="planted"):
        disk.fsync(descriptor)
    disk.write(descriptor, memoryview(b"b"), 1)
    disk.fsync(descriptor)
    assert {state["f"] for state in left(disk)} == {b"ab", b"\0b"}


@pytest.mark.parametrize("workload", ALL_WORKLOADS, ids=lambda workload: workload.name)
def test_the_disk_in_memory_shows_what_a_real_disk_shows(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(CrashDisk):
        """The same faults and the same short writes, on the real disk: each call is made on both."""

        def open(self, path: Path, flags: int) -> int:
            descriptor = super().open(path, flags)
            real[descriptor] = disk.open(tmp_path / path.name, flags)
            return descriptor

        def close(self, descriptor: int) -> None:
            super().close(descriptor)
            disk.close(real.pop(descriptor))

        def write(self, descriptor: int, data: memoryview, offset: int) -> int:
            disk.write(real[descriptor], data[: self.bytes_per_write], offset)
            return super().write(descriptor, data, offset)

        def allocate(self, descriptor: int, length: int) -> None:
            disk.allocate(real[descriptor], length)
            super().allocate(descriptor, length)

        def truncate(self, descriptor: int, length: int) -> None:
            disk.truncate(real[descriptor], length)
            super().truncate(descriptor, length)

        def rename(self, old: Path, new: Path) -> None:
            super().rename(old, new)
            disk.rename(tmp_path / old.name, tmp_path / new.name)

        def link(self, old: Path, new: Path) -> None:
            super().link(old, new)
            disk.link(tmp_path / old.name, tmp_path / new.name)

        def unlink(self, path: Path) -> None:
            super().unlink(path)
            disk.unlink(tmp_path / path.name)

        def lock(self, descriptor: int) -> None:
            disk.lock(real[descriptor])
            super().lock(descriptor)

        def same(self) -> None:
            seen = self.contents()
            assert sorted(os.listdir(tmp_path)) == sorted(seen)
            for name, data in seen.items():
                assert (tmp_path / name).read_bytes() == data, name

    monkeypatch.setattr(secrets, "randbits", random.Random(1).getrandbits)
    disk, real = Disk(), dict[int, int]()
    both = Elsewhere()
    promises = Promises(moved=both.same)
    workload.run(REAL, both, promises, Mark("n"))
    both.same()
    assert not real
    assert promises.now.must or promises.now.files


def test_a_broken_promise_is_told_with_the_state_that_broke_it() -> None:
    lossy = CrashDisk({})
    promises = Promises()
    with promises.adding(0, [(1, b"gone")]):
        pass
    with pytest.raises(Broken, match="acknowledged and lost"):
        WORKLOADS[0].resume(REAL, lossy, promises)
    assert LOG.name in lossy.contents()
