"""Every crash that the shim can think of, recovered with the real code; and the shim itself, against a real disk."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from code_under_test import REAL
from crash_disk import CrashDisk
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

        def same(self) -> None:
            seen = self.contents()
            assert sorted(os.listdir(tmp_path)) == sorted(seen)
            for name, data in seen.items():
                assert (tmp_path / name).read_bytes() == data, name

    def mirrored(call: str) -> Callable[..., None]:
        def both(self: Elsewhere, first: Path | int, *rest: Path | int) -> None:
            getattr(CrashDisk, call)(self, first, *rest)
            of = [tmp_path / one.name if isinstance(one, Path) else one for one in rest]
            getattr(disk, call)(tmp_path / first.name if isinstance(first, Path) else real[first], *of)

        return both

    for call in ("truncate", "rename", "link", "unlink", "lock"):
        setattr(Elsewhere, call, mirrored(call))
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
