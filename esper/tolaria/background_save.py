"""Writes checkpoints in a background thread while training continues, one at a time."""

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
from esper.leyline.checkpoint_record import CheckpointWritten, StateCopied
from esper.tolaria.checkpoint_file import FORMAT, save
from esper.tolaria.memory_copy import HeldSnapshot, MemoryCopy
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.snapshot_codec import plain_incubation, to_plain, topology_digest

SYNC_EVERY_BYTES = 256 * 2**20
"""Bytes between two syncs. A slow disk takes seconds for this amount."""
WRITE_BACK_EVERY_BYTES = 8 * 2**20
"""Number of bytes after which the system starts to write to the disk."""


class Saver:
    """The memory copy of one host's state, and the thread that writes the copy.

    After a failed save, every later method call raises the error of the save. Only `saved` may be called from another
    thread than the other methods.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id, self._copy = run_id, MemoryCopy()
        self._writing: Future[CheckpointWritten] | None = None

    @property
    def held(self) -> HeldSnapshot | None:
        """The state that was last copied. None: no state was copied."""
        return self._copy.held

    def copy_state(self, live: HostSnapshot, generation: int) -> HeldSnapshot:
        """Wait for the end of the running save, which reads the memory copy. Then copy the state over the memory copy.

        Raises:
            Exception: the error of the running save. The memory copy is not changed.
        """
        if self._writing is not None:
            self._writing.result()
        return self._copy.copy_state(live, generation)

    def save(
        self,
        path: Path,
        live: HostSnapshot,
        generation: int,
        states: Mapping[str, str],
        incubation: Mapping[str, Any],  # Any: see `plain_incubation`
    ) -> None:
        """Copy the state in memory and start writing the copy.

        This call returns after the copy. If another save is running, it waits first for the end of that save.

        Raises:
            Exception: the error of the previous save. No write was started.
        """
        held = self.copy_state(live, generation)
        context, texts, beside = copy_context(), dict(states), dict(incubation)
        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = executor.submit(context.run, _write, path, self._run_id, held, texts, beside)
        executor.shutdown(wait=False)  # the thread ends after this job

    def saved(self) -> CheckpointWritten:
        """Wait until the last save is durable, and return its record.

        Raises:
            StoreWriteFailed: the file could not be made durable.
        """
        writing = self._writing
        assert writing is not None, "no save was begun"
        return writing.result()

    def check(self) -> None:
        """If the last save has failed, raise its error. Do not wait for a running save."""
        if self._writing is not None and self._writing.done():
            self._writing.result()


class SavingDisk(Disk):
    """System calls for writing one large file. A heartbeat after each write shows progress to the supervisor.

    The disk starts to write a piece while the next piece is copied and checksummed. The file is synced several times,
    because a single sync might take longer than the supervisor waits for a heartbeat.
    """

    def __init__(self) -> None:
        self._handed_over, self._unsynced = 0, 0

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        """Write data; see `Disk`. After enough bytes, start write-back or sync the file."""
        written = super().write(descriptor, data, offset)
        self._unsynced += written
        gathered = offset + written - self._handed_over
        if gathered >= WRITE_BACK_EVERY_BYTES:  # DONTNEED starts write-back and does not wait for its end
            os.posix_fadvise(descriptor, self._handed_over, gathered, os.POSIX_FADV_DONTNEED)
            self._handed_over += gathered
        if self._unsynced >= SYNC_EVERY_BYTES:
            self.fdatasync(descriptor)
            self._unsynced = 0
        beat()
        return written


def _write(
    path: Path, run_id: str, held: HeldSnapshot, states: dict[str, str], incubation: dict[str, Any]
) -> CheckpointWritten:
    start = time.monotonic()
    copied, snapshot = held.record, held.snapshot
    faults.point("tolaria.save", round=copied.fence)
    written = save(path, checkpoint_of(run_id, copied, snapshot, states, incubation), disk=SavingDisk())
    return CheckpointWritten(
        file=path.name,
        length=written.length,
        crc=written.crc,
        algorithm=written.algorithm,
        fence=copied.fence,
        step=copied.step,
        generation=copied.generation,
        weights_crc32c=state_crc32c(snapshot.tensors),
        topology_digest=topology_digest(snapshot.topology),
        seconds=time.monotonic() - start,
    )


def checkpoint_of(
    run_id: str,
    copied: StateCopied,
    snapshot: HostSnapshot,
    states: Mapping[str, str],
    incubation: Mapping[str, Any],  # Any: see `plain_incubation`
) -> dict[str, Any]:
    """Return the whole content of one checkpoint, as plain values.

    Args:
        states: Name of a component -> state of the component, as text.
        incubation: Plain values and snapshots of other hosts.

    Raises:
        TaskError: the state of an optimizer, the scheduler, a module or a data set is not plain.
    """
    return {
        "format": FORMAT,
        "run_id": run_id,
        "fence": copied.fence,
        "step": copied.step,
        "generation": copied.generation,
        "trainer": to_plain(snapshot),
        # "rooms" are the states of Kasmina, Tamiyo and the line; "nursery" is the tournament in flight and the twin.
        # The keys do not change, because older checkpoints have them.
        "rooms": dict(states),
        "nursery": plain_incubation(incubation),
    }
