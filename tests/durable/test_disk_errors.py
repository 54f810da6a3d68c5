"""Every single system call fails, once or from then on; a disk is full; a file may grow no further; signals rain.

Python itself repeats a call that a signal interrupts (PEP 475), so EINTR reaches us only from a handler that raises or
from a system that will not be interrupted twice: it is an error like any other, and the rain of signals shows the rest.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from crash_disk import FOLDER, CrashDisk
from filling import NO_MOUNT
from workloads import LOG

from esper.durable.files import Disk, atomic_write
from esper.durable.log import FramedLog, scan
from esper.durable.log_format import Frame
from esper.durable.segments import SegmentedLog, iterate_segments
from esper.durable.streams import open_verified, write_stream
from esper.errors import EsperError, StoreCorrupt, StoreWriteFailed

ROOT = Path(__file__).resolve().parents[2]
CODES = (errno.EIO, errno.ENOSPC, errno.EINTR)
CALLS = tuple(call for call in vars(Disk) if not call.startswith("_"))
MODES = ("before", "after", "half")
"""Whether the call has its effect although it fails; of a write it may be half of it."""


class Failing(CrashDisk):
    """The call number `at` fails with `code`, and all that follow it if `sticky`."""

    def __init__(self, at: int, code: int, mode: str, *, sticky: bool) -> None:
        super().__init__()
        self.calls, self._at, self._code, self._mode, self._sticky = 0, at, code, mode, sticky

    def heal(self) -> None:
        self._at = -1

    def run(self, call: str, *args: object, **more: object) -> object:
        number, self.calls = self.calls, self.calls + 1
        effect = partial(getattr(CrashDisk, call), self, *args, **more)
        if self._at < 0 or (number < self._at or (number > self._at and not self._sticky)):
            return effect()
        if call == "close":  # the system gives the descriptor up even if it reports an error
            effect()
        elif self._mode == "half" and call == "write":
            descriptor, data, offset = args
            super().write(descriptor, data[: len(data) // 2], offset)
        elif self._mode == "after" and call in {"write", "truncate", "rename", "link", "unlink", "sync_folder"}:
            effect()
        elif call in {"fdatasync", "fsync"}:
            self.faults = {call: 0}
            effect()
        raise OSError(self._code, f"planted in {call}")


for name in CALLS:
    setattr(Failing, name, lambda self, *args, call=name, **more: self.run(call, *args, **more))


def batch(number: int) -> list[tuple[int, bytes]]:
    return [(1, b"%d.%d" % (number, n)) for n in range(number % 3 + 1)]


def stubborn(disk: Failing, opened: Callable[[], FramedLog | SegmentedLog]) -> tuple[list[bytes], set[bytes]]:
    """Go on appending whatever fails, as the caller may: reopen only a log that says it takes no more.

    Returns:
        What was acknowledged, and what a log that failed past mending may hold besides.
    """
    must, may, log = list[bytes](), set[bytes](), None
    for number in range(9):
        try:
            log = log or opened()
        except EsperError:
            continue
        try:
            if number in (1, 3, 6) and isinstance(log, SegmentedLog):
                log.rotate()  # before the segment is full: an append that follows a failure would go to the old one
            log.append_many(batch(number))
            must += [payload for _, payload in batch(number)]
            if number == 4:
                log.close()
                log = None
        except EsperError:
            try:
                log.append_many([])  # taken back: it goes on, and the records are not there
            except EsperError:
                may.update(payload for _, payload in batch(number))
                may.update(closing(log))
                log = None
    disk.heal()
    if log is not None:
        log.close()
    return must, may


def closing(log: FramedLog | SegmentedLog) -> list[bytes]:
    """Close it, as far as the system lets us. No error of that adds a record."""
    try:
        log.close()
    except StoreWriteFailed as error:
        return [] if isinstance(error.__cause__, OSError) else [b"an error without its cause"]
    return []


def stubborn_log(disk: Failing) -> None:
    must, may = stubborn(disk, lambda: FramedLog.open(LOG, disk=disk))
    disk.end_process()
    with FramedLog.open(LOG, disk=disk):
        found = scan(LOG, disk=disk)
    judge([frame.payload for frame in found.frames], must, may)
    assert not found.errors


def stubborn_segments(disk: Failing) -> None:
    must, may = stubborn(disk, lambda: SegmentedLog.open(FOLDER, limit_bytes=100, disk=disk))
    disk.end_process()
    with SegmentedLog.open(FOLDER, limit_bytes=100, disk=disk):
        frames = [one for _, one in iterate_segments(FOLDER, disk=disk)]
    assert all(isinstance(frame, Frame) for frame in frames)
    assert [frame.sequence for frame in frames] == list(range(len(frames)))
    judge([frame.payload for frame in frames], must, may)


def judge(found: list[bytes], must: list[bytes], may: set[bytes]) -> None:
    assert [payload for payload in found if payload in must] == must
    assert {payload for payload in found if payload not in must} <= may


def stubborn_shrinking(disk: Failing) -> None:
    """Expire and rewrite, whatever fails: what was to stay stays, once."""
    healthy, disk._at = disk._at, -1
    log = SegmentedLog.open(FOLDER, limit_bytes=60, disk=disk)
    for number in range(6):
        log.append(1, b"%d" % number)
    disk._at, disk.calls = healthy, 0
    failed = False
    for drop in (lambda: log.expire(2), lambda: log.rewrite(lambda frame: frame.sequence != 4)):
        try:
            drop()
        except (StoreWriteFailed, StoreCorrupt):
            failed = True
    disk.heal()
    log.close()
    disk.end_process()
    found = [one.sequence for _, one in iterate_segments(FOLDER, disk=disk)]
    assert {2, 3, 5} <= set(found) <= (set(range(6)) if failed else {2, 3, 5})
    assert found == sorted(found)


def stubborn_files(disk: Failing) -> None:
    contents, allowed, named = (b"a", b"bb", b"ccc"), {b""}, {"run.json", "s"}
    for content in contents:
        try:
            atomic_write(FOLDER / "run.json", content, disk=disk)
            allowed = {content}
        except StoreWriteFailed:
            allowed.add(content)
    try:
        seal = write_stream(FOLDER / "s", lambda file: [file.write(b"xyz"), file.write(b"uv")], disk=disk)
    except StoreWriteFailed:
        seal = None
    disk.heal()
    found = disk.contents()
    assert (found.get("run.json") or b"") in allowed
    assert found.get("s") in ({b"xyzuv"} if seal else {b"xyzuv", None})
    if seal:
        with open_verified(FOLDER / "s", seal.length, seal.crc, seal.algorithm, disk=disk) as file:
            assert file.read() == b"xyzuv"
    assert all(name in named or name.endswith(".tmp") for name in found)


WORK = (stubborn_log, stubborn_segments, stubborn_shrinking, stubborn_files)


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.__getitem__)
def test_whatever_call_fails_nothing_acknowledged_is_lost_and_the_error_is_typed(
    work: Callable[[Failing], None], sticky: bool, mode: str, code: int
) -> None:
    at, reached = 0, True
    while reached:
        disk = Failing(at, code, mode, sticky=sticky)
        work(disk)
        reached, at = disk.calls > at, at + 1
    assert at > 20


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_writes_of_one_byte_at_a_time_are_as_good_as_whole_ones(work: Callable[[Failing], None]) -> None:
    disk = Failing(-1, 0, "before", sticky=False)
    disk.bytes_per_write = 1
    work(disk)
    assert disk.calls > 30


def test_signals_that_rain_on_a_writer_cost_nothing(tmp_path: Path) -> None:
    drops, stop = list[int](), threading.Event()
    main = threading.get_ident()

    def rain() -> None:
        while not stop.wait(0.0002):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda number, _: drops.append(number))
    rainer = threading.Thread(target=rain)
    rainer.start()
    try:
        with FramedLog.open(tmp_path / "a.log") as log:
            while len(drops) < 100:
                log.append(1, bytes(3000))
            count = log.next_sequence
    finally:
        stop.set()
        rainer.join()
        signal.signal(signal.SIGUSR1, before)
    assert len(scan(tmp_path / "a.log").frames) == count


# -- a disk that is really full -------------------------------------------------------------------------------------


def filled(folder: Path, limit_bytes: int) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parent / "kit" / "filling.py"
    command = [sys.executable, "-I", "-S", str(script), str(ROOT), str(folder), str(limit_bytes)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def all_is_well(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    errors, acknowledged = told.pop("errors"), told.pop("acknowledged")
    assert acknowledged > 20
    assert told == dict.fromkeys(told, True)
    return errors


def test_a_disk_that_is_full_loses_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    done = filled(tmp_path, 0)
    if done.returncode == NO_MOUNT:
        pytest.skip("this machine lets us mount no tmpfs")
    assert all_is_well(done) == [os.strerror(errno.ENOSPC)] * 3


def test_a_file_that_may_grow_no_further_loses_nothing(tmp_path: Path) -> None:
    assert set(all_is_well(filled(tmp_path, 20_000))) == {os.strerror(errno.EFBIG)}
