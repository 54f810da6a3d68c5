"""When a run's checkpoints are made, committed, dropped and gone back to. It copies no weights.

The trainer writes a checkpoint beside its training; the conductor, the journal's only writer, commits it. A checkpoint
counts from its COMMIT on, and only then is the oldest dropped (see docs/durability.md).
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from esper import faults
from esper.archive.journal import Journal, RecordKind
from esper.config.checkpoint_settings import CheckpointConfig
from esper.durable.files import DISK, Disk, make_folders, sync_folder
from esper.errors import ActorError, StoreWriteFailed
from esper.ground.closing import Closing
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.leyline.ports import LiveHost
from esper.telemetry.context import span
from esper.tolaria.checkpoint_file import Content, restore_latest
from esper.tolaria.snapshot_codec import from_plain, nursery_of

_LEFT = re.compile(r"fence-\d+-g\d+\.pt|\.fence-\d+-g\d+\.pt\.[0-9a-f]+\.tmp")
"""Names of checkpoints, and of what is to become one."""


class HostCopy(Enum):
    """Where the host of a `FenceState` is, if it is no snapshot."""

    IN_MEMORY = auto()
    """The trainer that is alive keeps it."""
    AS_BUILT = auto()
    """The trainer has done nothing since it was built, and stands there."""


@dataclass(frozen=True)
class FenceState:
    """All that a run's future depends on, as it was at a fence."""

    fence: int | None
    """None: before fence 0."""
    host: Any  # Any: a HostCopy, or a HostSnapshot that was read from disk
    rooms: Mapping[str, str]
    nursery: Mapping[str, Any]  # Any: see `Nursery.state`


Trial = Callable[[CheckpointWritten, FenceState], None]
"""Raises if a run cannot go on from this checkpoint; changes nothing."""


def _state_of(written: CheckpointWritten, content: Content) -> FenceState:
    host, nursery = from_plain(content["trainer"]), nursery_of(content["nursery"])
    return FenceState(written.fence, host, content["rooms"], nursery)


class Checkpoints(Closing):
    """The checkpoints of one run, in one generation after the other. One save is in flight at a time."""

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        config: CheckpointConfig,
        committed: Sequence[CheckpointWritten] = (),
        *,
        run_id: str | None = None,
        disk: Disk = DISK,
    ) -> None:
        """`run_id`: of the run that checkpoints to load must be of; None: of any."""
        make_folders(folder, disk=disk)
        self._folder, self._journal, self.config, self._disk = folder, journal, config, disk
        self._committed, self._run_id = list(committed), run_id
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None

    def due(self, fence: int, last_fence: int) -> bool:
        """A checkpoint is made at this fence: the first and the last always have one."""
        return fence % self.config.every_rounds == 0 or fence == last_fence

    def begin(
        self,
        trainer: LiveHost,
        fence: int,
        rooms: Mapping[str, str],
        nursery: Mapping[str, Any],  # Any: see `Nursery.state`
    ) -> None:
        """Have the trainer save its state with that of the other rooms. It is committed when it is durable.

        Raises:
            StoreWriteFailed: the save before this one failed.
        """
        self.settle()
        file = f"fence-{fence}-g{self._journal.generation}.pt"
        with span("checkpoint begin", role="conductor", fence=fence):
            self._journal.write(RecordKind.CHECKPOINT_BEGUN, file=file, fence=fence)
            trainer.save(self._folder / file, rooms, nursery)
            self._in_flight = self._pool.submit(contextvars.copy_context().run, self._commit, trainer)

    def settle(self) -> None:
        """Wait for the save in flight until it is committed.

        Raises:
            StoreWriteFailed: it could not be written; what was committed before is whole.
        """
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    def give_up(self) -> None:
        """Let go of the save in flight, whose trainer is gone: it was committed, or it never will be.

        Raises:
            StoreWriteFailed: the disk refused it.
        """
        with suppress(ActorError):
            self.settle()

    def close(self) -> None:
        """Take no more. A save in flight is awaited, or given up with its trainer's process; `settle` tells of it."""
        self._pool.shutdown(wait=True)

    def load_latest(self, trial: Trial | None = None) -> FenceState:
        """The last committed checkpoint that loads and passes the trial; those after it are put aside.

        Raises:
            RestoreImpossible: none loads.
            Exception: what the user's code raised in every trial; see `restore_latest`.
        """

        def tried(written: CheckpointWritten, content: Content) -> None:
            if trial is not None:
                trial(written, _state_of(written, content))

        self.settle()
        written, content = restore_latest(self._folder, self._committed, run_id=self._run_id, trial=tried)
        self._committed = [one for one in self._committed if one.fence <= written.fence]
        return _state_of(written, content)

    def sweep(self) -> tuple[str, ...]:
        """Remove what earlier saves left: files that were never committed or were taken back, and torn ones.

        Returns:
            Their names.

        Raises:
            StoreWriteFailed: one cannot be removed.
        """
        kept = {written.file for written in self._committed}
        left = [path for path in sorted(self._folder.glob("*fence-*")) if _LEFT.fullmatch(path.name)]
        left = [path for path in left if path.name not in kept]
        self._remove(left)
        return tuple(path.name for path in left)

    @property
    def committed(self) -> tuple[CheckpointWritten, ...]:
        """Committed checkpoints that are kept, oldest first."""
        return tuple(self._committed)

    def _commit(self, trainer: LiveHost) -> None:
        with span("checkpoint commit", role="conductor"):
            written = trainer.saved()
            faults.point("conductor.commit", round=written.fence)
            self._journal.write(RecordKind.CHECKPOINT_COMMITTED, written)
            self._committed.append(written)
            self._drop_old()

    def _drop_old(self) -> None:
        """Unlink what is older than the newest `keep`, but for fence 0: the last way back there is."""
        old = self._committed[: -self.config.keep]
        dropped = [written for written in old if written.fence != 0]
        self._remove([self._folder / written.file for written in dropped])
        self._committed = [written for written in self._committed if written not in dropped]

    def _remove(self, paths: Sequence[Path]) -> None:
        """Raises: StoreWriteFailed: one is still there, or may be again after a crash."""
        for path in paths:
            try:
                self._disk.unlink(path)
            except OSError as error:
                raise StoreWriteFailed(str(path), "removing it") from error
        if paths:
            sync_folder(self._folder, disk=self._disk)
