"""Memory for snapshots, saves in the background and restores, beyond the memory for training.

There are two hosts of the same size, the host and its twin, and the host trains. The figure is the peak of the
process's anonymous pages, minus the peak in training without snapshots and saves. Mapped pages of files do not count.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from _common import Outcome, Row, Spread, main, scratch
from _state import MEBIBYTE, tensor_bytes, trained

from esper.tolaria.checkpoint_file import load_written
from esper.tolaria.snapshot_codec import from_plain, incubation_of
from esper.tolaria.trainer import Trainer
from esper.user_code.process_state import process_state

STATE_BYTES = 256 * MEBIBYTE
BUFFERS = 2
"""Number of copies. The trainer has one copy, and the twin has one copy."""
SLACK_BYTES = 16 * MEBIBYTE
"""Allowed further memory, for the allocator, for Python, and for the pieces of a save."""
LOOK_EVERY_S = 0.002


class Peak:
    """The peak of this process's anonymous memory."""

    def __init__(self) -> None:
        self.bytes = own_bytes()
        self._over = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[Peak]:
        """Measure repeatedly during the block."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self.bytes = max(self.bytes, own_bytes())


def own_bytes() -> int:
    """Return the bytes of the anonymous pages of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say how much of a process's memory is its own")


def tidied() -> int:
    """Free unused memory, and return the number of bytes that are still in use."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return own_bytes()


def measure(repetitions: int) -> Outcome:
    """Measure a save of both hosts during training, a restore of both, and a rollback, in every repetition."""
    with process_state(1), scratch() as folder:
        host, twin, generations = trained(STATE_BYTES), trained(STATE_BYTES), count(2)
        tidied()
        with Peak().watched() as training:
            host.train_to(6)
        before = training.bytes
        peaks = {"save": list[float](), "restore": list[float]()}
        size = 0
        for repetition in range(repetitions):
            with Peak().watched() as saving:
                size = _save(host, twin, folder / f"{repetition}.pt", 8 + 2 * repetition)
            with Peak().watched() as restoring:
                _restore(host, folder, next(generations))
            host.roll_back(next(generations))
            peaks["save"].append((saving.bytes - before) / size)
            peaks["restore"].append((restoring.bytes - before) / size)
            tidied()
    most = BUFFERS + SLACK_BYTES / size
    rows = [
        Row.judged(
            f"own memory at its highest in a {name}, beyond training, two of {size / MEBIBYTE:.0f} MiB, in states",
            max(found),
            1.0,
            f"<= {most:.2f}: {BUFFERS} copies and {SLACK_BYTES // MEBIBYTE} MiB",
            max(found) <= most,
        )
        for name, found in peaks.items()
    ]
    return Outcome(rows, {f"{name} (states)": Spread(tuple(found)) for name, found in peaks.items()})


def _save(host: Trainer, twin: Trainer, path: Path, step: int) -> int:
    """Save both hosts while the host trains. Return the bytes of one state."""
    kept = twin.snapshot()
    host.save(path, {}, {"twin": kept, "twin_steps": 2, "origin": None})
    host.train_to(step)
    host.saved()
    return tensor_bytes(host.copy_state(0))


def _restore(host: Trainer, folder: Path, generation: int) -> None:
    """Verify and load both hosts, and restore the host. The twin is only loaded."""
    found = load_written(folder, host.saved())
    twin = incubation_of(found["nursery"])["twin"]
    assert twin is not None, "it was saved"
    host.restore(from_plain(found["trainer"]), generation)


if __name__ == "__main__":
    main("memory", __doc__, measure)
