"""Writes a checkpoint in the background while training goes on: one at a time. It decides neither when nor what."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

from esper import faults
from esper.durable.files import Disk
from esper.ground.heartbeat import beat
from esper.ground.tensors import state_crc32c
from esper.leyline.checkpoint_record import CheckpointWritten, MemoryCopy
from esper.tolaria.checkpoint_file import FORMAT, save
from esper.tolaria.memory_copy import Arena, HeldSnapshot
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.snapshot_codec import plain_nursery, to_plain, topology_digest

SYNC_EVERY_BYTES = 256 * 2**20
"""A slow disk takes seconds for them."""
WRITE_BACK_EVERY_BYTES = 8 * 2**20


class Saver:
    """The arena of one host, and the thread that writes what is in it. A save that failed fails whatever comes after.

    Its owner calls from one thread; `saved` alone may come from another.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id, self._arena = run_id, Arena()
        self._writing: Future[CheckpointWritten] | None = None

    @property
    def held(self) -> HeldSnapshot | None:
        """What is in the arena."""
        return self._arena.held

    def keep(self, live: HostSnapshot, generation: int) -> HeldSnapshot:
        """Copy the state into the arena, after the save in flight, which reads from there.

        Raises:
            Whatever that save raised; the arena is as it was.
        """
        if self._writing is not None:
            self._writing.result()
        return self._arena.keep(live, generation)

    def save(
        self,
        path: Path,
        live: HostSnapshot,
        generation: int,
        rooms: Mapping[str, str],
        nursery: Mapping[str, Any],  # Any: see `plain_nursery`
    ) -> None:
        """Keep the state and begin to write it. Stalls for the copy alone, unless a save is in flight.

        Raises:
            Whatever the save before raised; nothing was begun.
        """
        held = self.keep(live, generation)
        context, texts, beside = copy_context(), dict(rooms), dict(nursery)
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = executor.submit(context.run, _write, path, self._run_id, held, texts, beside)
        executor.shutdown(wait=False)  # its one thread ends with its one job

    def saved(self) -> CheckpointWritten:
        """The record of the last save, once it is durable.

        Raises:
            StoreWriteFailed: it could not be made durable.
        """
        writing = self._writing
        assert writing is not None, "no save was begun"
        return writing.result()

    def check(self) -> None:
        """Raise what a save in the background raised, if it did; does not wait."""
        if self._writing is not None and self._writing.done():
            self._writing.result()


class SavingDisk(Disk):
    """The system's calls for one large file, by which whoever watches this process sees that it gets on.

    The disk begins at once with what was written, instead of with all of it at the sync: it works while the next piece
    is copied and sealed. One sync of all at the end might take longer than anybody waits, so there are several.
    """

    def __init__(self) -> None:
        self._handed_over, self._unsynced = 0, 0

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write, hand over to the disk or sync what has gathered; see `Disk`."""
        written = super().write(descriptor, data, offset)
        self._unsynced += written
        gathered = offset + written - self._handed_over
        if gathered >= WRITE_BACK_EVERY_BYTES:  # that it is not needed has the system write it, and wait for nothing
            os.posix_fadvise(descriptor, self._handed_over, gathered, os.POSIX_FADV_DONTNEED)
            self._handed_over += gathered
        if self._unsynced >= SYNC_EVERY_BYTES:
            self.fdatasync(descriptor)
            self._unsynced = 0
        beat()
        return written


def _write(
    path: Path, run_id: str, held: HeldSnapshot, rooms: dict[str, str], nursery: dict[str, Any]
) -> CheckpointWritten:
    start = time.monotonic()
    kept, snapshot = held.kept, held.snapshot
    faults.point("tolaria.save", round=kept.fence)
    written = save(path, checkpoint_of(run_id, kept, snapshot, rooms, nursery), disk=SavingDisk())
    return CheckpointWritten(
        file=path.name,
        length=written.length,
        crc=written.crc,
        algorithm=written.algorithm,
        fence=kept.fence,
        step=kept.step,
        generation=kept.generation,
        weights_crc32c=state_crc32c(snapshot.tensors),
        topology_digest=topology_digest(snapshot.topology),
        seconds=time.monotonic() - start,
    )


def checkpoint_of(
    run_id: str,
    kept: MemoryCopy,
    snapshot: HostSnapshot,
    rooms: Mapping[str, str],
    nursery: Mapping[str, Any],  # Any: see `plain_nursery`
) -> dict[str, Any]:
    """The whole content of one checkpoint, as plain values.

    Raises:
        TaskError: the state of an optimizer or of the scheduler is not plain.
    """
    return {
        "format": FORMAT,
        "run_id": run_id,
        "fence": kept.fence,
        "step": kept.step,
        "generation": kept.generation,
        "trainer": to_plain(snapshot),
        "rooms": dict(rooms),
        "nursery": plain_nursery(nursery),
    }
