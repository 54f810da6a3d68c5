"""Times of a checkpoint: the stall of training, the save in the background, and a verified restore.

They are compared with a copy in memory, a plain write with one fsync, and a read of a file in the page cache, measured
in alternation. The stall is also compared with torch's asynchronous checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch.distributed
from _common import Outcome, Row, Spread, main, scratch
from _state import MEBIBYTE, best, copies, in_turns, plain_state, seconds, tensor_bytes, trained
from torch.distributed.checkpoint import async_save

from esper.tolaria.checkpoint_file import load_written
from esper.tolaria.snapshot_codec import from_plain
from esper.tolaria.trainer import Trainer
from esper.user_code.process_state import process_state

STATE_BYTES = 512 * MEBIBYTE
STALL, OF_DCP, SAVE, RESTORE = 1.5, 1 / 3, 1.15, 3.5
TURNS = 3
"""Number of turns in every repetition."""
CHUNK_BYTES = MEBIBYTE


class Saves:
    """Checkpoints of one trainer, each in a new file. The older file is removed after the next save."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self._trainer, self._folder, self._numbers = trainer, folder, count()
        self._old = self._path = folder / "none"
        self._generations = count(2)
        self.written_s: list[float] = []

    def stall(self) -> None:
        """Begin a save. `settle` waits for its end."""
        self._old, self._path = self._path, self._folder / f"{next(self._numbers)}.pt"
        self._trainer.save(self._path, {}, {})

    def settle(self) -> None:
        """Wait until the save is durable."""
        self.written_s.append(self._trainer.saved().seconds)
        self._old.unlink(missing_ok=True)

    def restore(self) -> None:
        """Verify and load the checkpoint, and copy it into the live host."""
        found = load_written(self._folder, self._trainer.saved())
        self._trainer.restore(from_plain(found["trainer"]), next(self._generations))

    def raw_write(self, content: bytearray) -> None:
        """Write the same number of bytes from memory, with one fsync."""
        whole = memoryview(content)
        path = self._folder / "raw"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for start in range(0, len(whole), CHUNK_BYTES):
            os.write(descriptor, whole[start : start + CHUNK_BYTES])
        os.fsync(descriptor)
        os.close(descriptor)

    def drop_raw(self) -> None:
        (self._folder / "raw").unlink()

    def warm_read(self, buffer: bytearray) -> None:
        """Read the last checkpoint from the page cache into existing memory."""
        with self._path.open("rb", buffering=0) as file:
            view = memoryview(buffer)
            while read := file.readinto(view):
                view = view[read:]


class TorchSaves:
    """Asynchronous saves of the same tensors by torch.distributed.checkpoint."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self._state, self._folder, self._numbers = plain_state(trainer), folder, count()

    def stall(self) -> None:
        """Begin a save."""
        self._future = async_save(self._state, checkpoint_id=str(self._folder / f"dcp-{next(self._numbers)}"))

    def settle(self) -> None:
        """Wait for the end of the save, and remove its files."""
        self._future.result()
        for path in self._folder.glob("dcp-*/*"):
            path.unlink()


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """Make a process group of one process, because torch's checkpoints require a group."""
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def measure(repetitions: int) -> Outcome:
    """Measure all times. Every turn first waits until the disk has no work left."""
    found: dict[str, list[float]] = {}

    def keep(name: str, values: list[float]) -> None:
        found.setdefault(name, []).extend(values)

    with process_state(1), scratch() as folder, process_group(folder):
        trainer = trained(STATE_BYTES)
        size = tensor_bytes(trainer.copy_state(0))
        ours, theirs, ways = Saves(trainer, folder), TorchSaves(trainer, folder), copies(size)
        for warm in (ours, theirs):
            warm.stall()
            warm.settle()
        ours.written_s.clear()
        buffer = bytearray(trainer.saved().length)
        ours.warm_read(buffer)

        def save() -> None:
            keep("save returns", [seconds(ours.stall)])
            ours.settle()

        def raw() -> None:
            keep("raw write and fsync", [seconds(lambda: ours.raw_write(buffer))])
            ours.drop_raw()

        for turn in range(TURNS * repetitions):
            for name, values in in_turns(ways, 1).items():
                keep(name, values)
            keep("torch's async_save returns", [seconds(theirs.stall)])
            theirs.settle()
            for writes in (save, raw) if turn % 2 else (raw, save):
                os.sync()
                writes()
            os.sync()
            for name, values in in_turns(
                {"warm read": lambda: ours.warm_read(buffer), "restore": ours.restore}, 1
            ).items():
                keep(name, values)
        keep("save in the background", ours.written_s)
    return _outcome({name: Spread(tuple(values)) for name, values in found.items()}, size)


def _outcome(found: dict[str, Spread], size: int) -> Outcome:
    medians = {name: spread.median for name, spread in found.items()}
    memcpy = medians[best({name: found[name].values for name in found}, ["memmove", "numpy", "torch"])]
    of = f"of {size / MEBIBYTE:.0f} MiB (s)"
    rows = [
        _row(f"stall of a save {of}", medians["save returns"], memcpy, STALL, "the best memcpy"),
        _row(
            f"stall {of}", medians["save returns"], medians["torch's async_save returns"], OF_DCP, "torch's async_save"
        ),
        _row(
            f"durable save {of}",
            medians["save in the background"],
            medians["raw write and fsync"],
            SAVE,
            "write + fsync",
        ),
        _row(f"verified restore {of}", medians["restore"], medians["warm read"], RESTORE, "a warm read"),
    ]
    return Outcome(rows, {f"{name} (s)": spread for name, spread in found.items()})


def _row(measure: str, value: float, limit: float, ratio: float, peer: str) -> Row:
    return Row.judged(measure, value, limit, f"<= {ratio:.3g} of {peer}", value <= ratio * limit)


if __name__ == "__main__":
    main("checkpoint", __doc__, measure)
