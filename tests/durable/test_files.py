"""Atomic files and the lease on a run directory, on a real disk and on one that fails."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from esper.durable.files import DirectoryLease, Disk, atomic_write, sync_folder
from esper.errors import RunDirectoryError, StoreWriteFailed
from esper.testing import telling


class FailingDisk(Disk):
    """A real disk that notes its calls and on which one named call fails with EIO."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[str] = []

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.failing:
            raise OSError(errno.EIO, f"planted in {call}")

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._note("write")
        return super().write(descriptor, data[:3], offset)

    def fsync(self, descriptor: int) -> None:
        self._note("fsync")
        super().fsync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        self._note("rename")
        super().rename(old, new)

    def sync_folder(self, path: Path) -> None:
        self._note("sync_folder")
        super().sync_folder(path)


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(tmp_path: Path, failing: str) -> None:
    path = tmp_path / "run.json"
    atomic_write(path, b"old")
    with pytest.raises(StoreWriteFailed, check=telling(f"in {failing}", "planted", doing="atomic write")) as caught:
        atomic_write(path, b"new", disk=FailingDisk(failing))
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_may_be_lost_is_not_acknowledged(tmp_path: Path) -> None:
    with pytest.raises(StoreWriteFailed, check=telling("run.json", "sync_folder", doing="atomic write")):
        atomic_write(tmp_path / "run.json", b"new", disk=FailingDisk("sync_folder"))
    with pytest.raises(StoreWriteFailed, check=telling(doing="sync of the folder")):
        sync_folder(tmp_path, disk=FailingDisk("sync_folder"))


def test_a_disk_that_writes_nothing_is_an_error_and_not_an_endless_loop(tmp_path: Path) -> None:
    class Full(Disk):
        def write(self, descriptor: int, data: memoryview, offset: int) -> int:
            return super().write(descriptor, data[:0], offset)

    with pytest.raises(StoreWriteFailed, check=telling("run.json", doing="atomic write")):
        atomic_write(tmp_path / "run.json", b"new", disk=Full())


def test_a_folder_that_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(StoreWriteFailed):
        sync_folder(tmp_path / "absent")


def test_a_held_lease_is_refused_and_names_its_holder(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("left by a process that died " * 10)
    with DirectoryLease(tmp_path):
        assert (tmp_path / "lease").read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"
        descriptors = os.listdir("/proc/self/fd")
        with pytest.raises(RunDirectoryError, check=telling(f"pid {os.getpid()}", "in use", field="run directory")):
            DirectoryLease(tmp_path).acquire()
        assert os.listdir("/proc/self/fd") == descriptors


def test_a_released_lease_can_be_taken_again_by_the_same_object(tmp_path: Path) -> None:
    lease = DirectoryLease(tmp_path)
    for _ in range(2):
        lease.acquire()
        with pytest.raises(RunDirectoryError):
            DirectoryLease(tmp_path).acquire()
        lease.release()
        lease.release()


def test_a_lease_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    holder = "import sys, pathlib; from esper.durable.files import DirectoryLease as Lease\n"
    holder += "lease = Lease(pathlib.Path(sys.argv[1])); lease.acquire(); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunDirectoryError, check=telling(f"pid {process.pid}", field="run directory")):
            DirectoryLease(tmp_path).acquire()
        process.kill()
    with DirectoryLease(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lease").read_text()


def test_a_copy_of_the_descriptor_in_a_forked_child_does_not_keep_a_released_lease(tmp_path: Path) -> None:
    class Copying(Disk):
        def lock(self, descriptor: int) -> None:
            self.copy = os.dup(descriptor)  # shares the lock, as a fork's copy does
            super().lock(descriptor)

    disk = Copying()
    with DirectoryLease(tmp_path, disk=disk):
        pass
    try:
        with DirectoryLease(tmp_path):
            assert str(os.getpid()) in (tmp_path / "lease").read_text()
    finally:
        os.close(disk.copy)


def test_a_lease_on_a_folder_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, check=telling(field="run directory", value=re.compile("/absent$"))) as caught:
        DirectoryLease(tmp_path / "absent").acquire()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
