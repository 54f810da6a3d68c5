"""Makes, commits, drops and loads the checkpoints of a run.

The trainer writes a checkpoint file in the background. The conductor, which is the only writer of the journal, commits
it. A checkpoint is valid from its COMMIT on. The oldest checkpoint is dropped only after that (see docs/durability.md).
"""

from __future__ import annotations

import contextvars
import re
import time
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
from esper.telemetry.metrics import observe
from esper.tolaria.checkpoint_file import Content, restore_latest
from esper.tolaria.snapshot_codec import from_plain, incubation_of

_LEFT = re.compile(r"fence-\d+-g\d+\.pt|\.fence-\d+-g\d+\.pt\.[0-9a-f]+\.tmp")
"""Names of checkpoint files and of their temporary files."""


class HostCopy(Enum):
    """The place of the host's state, if a `FenceState` has no snapshot of the host."""

    IN_MEMORY = auto()
    """The state is a copy in the memory of the live trainer."""
    AS_BUILT = auto()
    """The state is the present state of the trainer, which has not changed since it was built."""


@dataclass(frozen=True)
class FenceState:
    """Everything at a fence that determines the rest of a run."""

    fence: int | None
    """None: the state before fence 0."""
    host: Any  # Any: a HostCopy, or a HostSnapshot that was read from disk
    states: Mapping[str, str]
    """The state of each component (line, kasmina, tamiyo) as text."""
    incubation: Mapping[str, Any]  # Any: see `Incubation.state`


Trial = Callable[[CheckpointWritten, FenceState], None]
"""A function that raises an error if a run cannot be resumed from a checkpoint. It does not change the run."""


def _state_of(written: CheckpointWritten, content: Content) -> FenceState:
    host, incubation = from_plain(content["trainer"]), incubation_of(content["nursery"])
    return FenceState(written.fence, host, content["rooms"], incubation)


class Checkpoints(Closing):
    """The checkpoints of one run, from all its generations. At most one save is in flight."""

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
        """`run_id`: id of the run that a loaded checkpoint must have. None: any run."""
        make_folders(folder, disk=disk)
        self._folder, self._journal, self.config, self._disk = folder, journal, config, disk
        self._committed, self._run_id = list(committed), run_id
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: Future[None] | None = None
        self._begun: int | None = None
        """Fence of the save that began last. It may still be in flight."""

    def due(self, fence: int, last_fence: int) -> bool:
        """Return whether a checkpoint is made at this fence. The first and the last fence always have a checkpoint."""
        return fence % self.config.every_rounds == 0 or fence == last_fence

    def begin(
        self,
        trainer: LiveHost,
        fence: int,
        states: Mapping[str, str],
        incubation: Mapping[str, Any],  # Any: see `Incubation.state`
    ) -> None:
        """Start a save of all components by the trainer. The checkpoint is committed when its file is durable.

        Raises:
            StoreWriteFailed: the save before this one failed.
        """
        self.settle()
        began_s = time.perf_counter()
        file = f"fence-{fence}-g{self._journal.generation}.pt"
        with span("checkpoint save", role="conductor", fence=fence):
            self._journal.write(RecordKind.CHECKPOINT_BEGUN, file=file, fence=fence)
            trainer.save(self._folder / file, states, incubation)
            self._begun = fence
            self._in_flight = self._pool.submit(contextvars.copy_context().run, self._commit, trainer, began_s)

    def settle(self) -> None:
        """Wait for the save in flight until it is committed.

        Raises:
            StoreWriteFailed: the checkpoint could not be written. Earlier committed checkpoints are intact.
        """
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    def give_up(self) -> None:
        """Wait for the end of the save in flight after its trainer died. When the method returns, the save is committed
        or will never be committed.

        Raises:
            StoreWriteFailed: the checkpoint could not be written to disk.
        """
        with suppress(ActorError):
            self.settle()

    def close(self) -> None:
        """Wait for a save in flight. An error of the save is raised by `settle`, not here. No save may begin
        afterwards.
        """
        self._pool.shutdown(wait=True)

    def load_latest(self, trial: Trial | None = None) -> FenceState:
        """Return the last committed checkpoint that loads and passes the trial. Later checkpoints are moved to
        quarantine.

        Raises:
            RestoreImpossible: no checkpoint loads.
            Exception: the exception of the user's code, if it raised in every trial; see `restore_latest`.
        """

        def tried(written: CheckpointWritten, content: Content) -> None:
            if trial is not None:
                trial(written, _state_of(written, content))

        self.settle()
        written, content = restore_latest(self._folder, self._committed, run_id=self._run_id, trial=tried)
        self._committed = [one for one in self._committed if one.fence <= written.fence]
        return _state_of(written, content)

    def load(self, fence: int) -> FenceState:
        """Return the committed checkpoint of one fence. Checkpoints of later fences are no longer valid.

        Raises:
            RestoreImpossible: the checkpoint does not load.
        """
        self.settle()
        wanted = [one for one in self._committed if one.fence == fence]
        written, content = restore_latest(self._folder, wanted, run_id=self._run_id)
        self._committed = [one for one in self._committed if one.fence <= fence]
        return _state_of(written, content)

    def sweep(self) -> tuple[str, ...]:
        """Remove files of earlier saves that are incomplete, were never committed, or belong to fences that were taken
        back.

        Returns:
            The names of the removed files.

        Raises:
            StoreWriteFailed: a file cannot be removed.
        """
        kept = {written.file for written in self._committed}
        left = [path for path in sorted(self._folder.glob("*fence-*")) if _LEFT.fullmatch(path.name)]
        left = [path for path in left if path.name not in kept]
        self._remove(left)
        return tuple(path.name for path in left)

    @property
    def fences(self) -> tuple[int, ...]:
        """The fences whose checkpoint can be loaded after the save in flight has ended, in ascending order. The result
        is the same before and after the end of that save.
        """
        fences = {written.fence for written in self._committed}
        if self._in_flight is not None and self._begun is not None:
            fences.add(self._begun)
        newest = sorted(fences)[-self.config.keep :]
        return tuple(sorted({*newest, *(fences & {0})}))

    @property
    def committed(self) -> tuple[CheckpointWritten, ...]:
        """Committed checkpoints that were not dropped, the oldest first."""
        return tuple(self._committed)

    def _commit(self, trainer: LiveHost, began_s: float) -> None:
        with span("checkpoint commit", role="conductor"):
            written = trainer.saved()
            faults.point("conductor.commit", round=written.fence)
            self._journal.write(RecordKind.CHECKPOINT_COMMITTED, written)
            self._committed.append(written)
            self._drop_old()
            observe("esper.checkpoint.duration", time.perf_counter() - began_s)

    def _drop_old(self) -> None:
        """Unlink all checkpoints except the newest `keep` and the checkpoint of fence 0. If no other checkpoint loads,
        a restore uses the checkpoint of fence 0.
        """
        old = self._committed[: -self.config.keep]
        dropped = [written for written in old if written.fence != 0]
        self._remove([self._folder / written.file for written in dropped])
        self._committed = [written for written in self._committed if written not in dropped]

    def _remove(self, paths: Sequence[Path]) -> None:
        """Raises: StoreWriteFailed: a file could not be removed, or may reappear after a crash."""
        for path in paths:
            try:
                self._disk.unlink(path)
            except OSError as error:
                raise StoreWriteFailed(str(path), "removing it") from error
        if paths:
            sync_folder(self._folder, disk=self._disk)
