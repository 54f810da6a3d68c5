"""Files that are written through a checksum and read only behind it; what writes them here is torch.save."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from esper.durable.files import Disk
from esper.durable.streams import Written, open_verified, write_stream
from esper.errors import StoreCorrupt, StoreWriteFailed, causes
from esper.testing import telling

STATE = {"weight": torch.arange(30_000, dtype=torch.float32), "step": 7, "names": ["a", "b"], "empty": torch.empty(0)}


def saved(path: Path, disk: Disk | None = None) -> Written:
    return write_stream(path, lambda file: torch.save(STATE, file), disk=disk or Disk())


class Full(Disk):
    """The write number `at` fails, and every one after it."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        self.calls += 1
        if self.calls > self.at:
            raise OSError(28, "planted")
        return super().write(descriptor, data, offset)


def test_what_torch_saves_is_what_torch_loads(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    seal = saved(path)
    assert (seal.length, seal.algorithm) == (path.stat().st_size, "crc32c")
    with open_verified(path, seal.length, seal.crc, seal.algorithm) as file:
        found = torch.load(file, weights_only=True)
    assert found.keys() == STATE.keys()
    assert torch.equal(found["weight"], STATE["weight"])
    assert list(tmp_path.iterdir()) == [path]


def test_the_descriptor_that_was_checked_can_be_mapped(tmp_path: Path) -> None:
    seal = saved(tmp_path / "s.pt")
    with open_verified(tmp_path / "s.pt", seal.length, seal.crc, seal.algorithm) as file:
        os.replace(tmp_path / "s.pt", tmp_path / "elsewhere")
        found = torch.load(f"/proc/self/fd/{file.fileno()}", weights_only=True, mmap=True)
        assert torch.equal(found["weight"], STATE["weight"])


def test_the_checksum_is_the_castagnoli_one(tmp_path: Path) -> None:
    seal = write_stream(tmp_path / "s", lambda file: file.write(b"123456789"))
    assert seal == Written(9, 0xE3069283, "crc32c")


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: torch.frombuffer(data, dtype=torch.int16).numpy()]
)
def test_any_buffer_is_taken_whole(tmp_path: Path, kind: type) -> None:
    data = bytearray(os.urandom(2**20 + 2**10))
    told = list[int]()

    def produce(file: BinaryIO) -> None:
        told.append(file.write(kind(data)))
        file.flush()
        told.append(file.tell())

    seal = write_stream(tmp_path / "s", produce)
    assert told == [len(data)] * 2
    with open_verified(tmp_path / "s", seal.length, seal.crc, seal.algorithm) as file:
        assert file.read() == data


def test_a_large_buffer_is_not_copied(tmp_path: Path) -> None:
    data = memoryview(bytes(2**25))
    tracemalloc.start()
    seal = write_stream(tmp_path / "s", lambda file: file.write(data))
    open_verified(tmp_path / "s", seal.length, seal.crc, seal.algorithm).close()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**22


def test_an_empty_stream_is_a_stream(tmp_path: Path) -> None:
    seal = write_stream(tmp_path / "s", lambda file: file.flush())
    assert seal == Written(0, 0, "crc32c")
    with open_verified(tmp_path / "s", 0, 0, "crc32c") as file:
        assert file.read() == b""


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_a_full_disk_is_told_as_such_through_torch_and_leaves_no_file(tmp_path: Path, at: int) -> None:
    with pytest.raises(StoreWriteFailed, check=telling("planted", doing="write of a stream")) as caught:
        saved(tmp_path / "s.pt", Full(at))
    assert [type(one) for one in causes(caught.value)] == [StoreWriteFailed, OSError]
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__cause__ is None  # torch raises ours again, and it must not become its own cause
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_producer_passes_through_and_leaves_no_file(tmp_path: Path) -> None:
    def produce(file: BinaryIO) -> None:
        file.write(b"some")
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        write_stream(tmp_path / "s", produce)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_producer_kept_takes_nothing_more(tmp_path: Path) -> None:
    kept = list[BinaryIO]()
    write_stream(tmp_path / "s", kept.append)
    with pytest.raises(ValueError, match="has ended"):
        kept[0].write(b"late")
    assert (tmp_path / "s").read_bytes() == b""


def test_what_is_no_file_is_refused_with_its_reason_and_leaves_no_descriptor(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which would keep a reader waiting
    before = os.listdir("/proc/self/fd")
    none = "it is no regular file"
    for path, reason in ((tmp_path / "absent", "No such file"), (tmp_path, none), (tmp_path / "pipe", none)):
        with pytest.raises(StoreCorrupt, match=reason):
            open_verified(path, 1, 1, "crc32c")
    seal = saved(tmp_path / "s.pt")
    with pytest.raises(StoreCorrupt, check=telling("s.pt")):
        open_verified(tmp_path / "s.pt", seal.length, seal.crc ^ 1, "crc32c")
    assert os.listdir("/proc/self/fd") == before
