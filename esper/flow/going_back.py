"""The one way back of a run to a fence: after a death, by a rollback, and where a run is resumed.

What is gone back to is kept here, too: in memory at every checkpoint, and on disk by `esper.flow.checkpoints`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from esper import faults
from esper.archive.journal import Journal, RecordKind
from esper.archive.recovery_record import Stopwatch
from esper.errors import EsperError, RestoreImpossible, RollbackDeadlineExceeded
from esper.flow.checkpoints import Checkpoints, FenceState, HostCopy
from esper.flow.crew import Rooms
from esper.flow.death_log import DeathLog
from esper.flow.position import LineState, Position
from esper.flow.progress import Progress
from esper.telemetry.context import span
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import count

T = TypeVar("T")


class Tier(StrEnum):
    """Where a rollback gets the state from that it goes back to."""

    FAST = "fast"
    """Memory: the trainer's own copy."""
    FULL = "full"
    """Disk: the last checkpoint that loads."""


class Cause(StrEnum):
    """Why a run goes back."""

    DEATH = "death"
    ROLLBACK = "rollback"
    """What happened since the last checkpoint is taken back. No part of a run asks for it yet."""
    RESUME = "resume"
    """Another process led the run until now. Its generation is superseded, and every room is new."""


class Phase(StrEnum):
    """How far a run is on its way back. A round runs in no phase but GOING_ON."""

    STARTED = "started"
    """Every room stands where everything began: fence 0 must be held, or the rooms restored."""
    GOING_ON = "going on"
    """Every room stands at the last fence, or in the round after it."""
    DECIDED = "decided"
    """The fence to go back to is known."""
    SUPERSEDED = "superseded"
    """The journal is in a new generation: what the old one wrote after that fence does not count."""
    REVIVED = "revived"
    """Every process is up and refuses messages of older generations. No room is restored yet, or only some are."""


NEXT: Mapping[Phase, frozenset[Phase]] = {
    Phase.STARTED: frozenset({Phase.GOING_ON, Phase.DECIDED, Phase.REVIVED}),
    Phase.GOING_ON: frozenset({Phase.DECIDED}),
    Phase.DECIDED: frozenset({Phase.SUPERSEDED, Phase.DECIDED}),
    Phase.SUPERSEDED: frozenset({Phase.REVIVED, Phase.DECIDED}),
    Phase.REVIVED: frozenset({Phase.GOING_ON, Phase.STARTED, Phase.DECIDED}),
}
"""The phases that may follow. Another death breaks a way back off in any phase; the next one begins with DECIDED."""


@dataclass
class GoingBack:
    """Keeps what a run can go back to, and takes it back there."""

    rooms: Rooms
    journal: Journal
    checkpoints: Checkpoints
    progress: Progress
    deaths: DeathLog
    at: Position
    phase: Phase = Phase.STARTED
    memory: FenceState | None = None
    """The state of the last checkpoint, whose host the trainer keeps in its memory; None: nothing is kept, it is being
    replaced, or its trainer is gone."""
    beginning: FenceState | None = None
    """The state before fence 0; None: nobody has asked for it yet, and every room stands there."""

    def enter(self, phase: Phase) -> None:
        """Enter a phase that may follow the present one."""
        assert phase in NEXT[self.phase], f"no way leads from {self.phase} to {phase}"
        self.phase = phase

    # -- what can be gone back to --------------------------------------------------------------------------------

    def keep_beginning(self) -> None:
        """Keep the state before fence 0 in memory: a death before the first checkpoint goes back to it."""
        if self.memory is None:
            self.rooms.trainer.keep(0)
            self.beginning = self.memory = self._beginning(HostCopy.IN_MEMORY)

    def keep(self, fence: int) -> None:
        """Keep the state of a fence in memory, and begin to write it to disk.

        Raises:
            StoreWriteFailed: the save before this one failed.
        """
        with self.at.tally.checkpoint():
            rooms = self._rooms_state()
            self.memory = None  # two copies of the twin at a time would be one too many
            kept = FenceState(fence, HostCopy.IN_MEMORY, rooms, self.rooms.incubator.state(fence))
            self.checkpoints.begin(self.rooms.trainer, fence, kept.rooms, kept.nursery)
            self.memory = kept

    def _beginning(self, host: HostCopy) -> FenceState:
        return FenceState(None, host, self._rooms_state(), self.rooms.incubator.state(0))

    def _rooms_state(self) -> dict[str, str]:
        """What decides the future beside the host and its forks, by room, as text."""
        return {"line": self.at.state(), "kasmina": self.rooms.kasmina.state(), "tamiyo": self.rooms.tamiyo.state()}

    def _last(self) -> FenceState | None:
        """The state in memory, if its trainer is alive; else the last checkpoint that loads, or the beginning.

        None: nothing has happened yet, and every room stands where everything began.
        """
        if self.memory is not None:
            return self.memory
        self.checkpoints.give_up()
        return self.checkpoints.load_latest() if self.checkpoints.committed else self.beginning

    # -- three causes --------------------------------------------------------------------------------------------

    def outlive(self, work: Callable[[], T]) -> T:
        """Do work of the run; after each death go back and do it again, until it returns.

        Raises:
            EsperError: what `work` raised, if no restart answers it; or a process did not come up.
            RestartIntensityExceeded: a process died once too often.
        """
        death: EsperError | None = None
        while True:
            try:
                if death is not None:
                    self.recover(death)
                return work()
            except EsperError as error:
                if error is death:
                    raise
                death = error

    def recover(self, error: EsperError) -> None:
        """Go back to the last fence after the death of a process.

        Raises:
            EsperError: `error` itself, if no restart answers it; or a process did not come up.
            RestartIntensityExceeded: a process died once too often.
            ActorLost: another process died on the way.
        """
        watch = Stopwatch(error)
        self.deaths.tell()  # of a recovery that this error broke off, also where no restart answers the error
        lost = self.rooms.crew.lost(error, self.at.fence)
        self.deaths.tell()
        with span("esper recover", role="conductor", fence=self.at.fence):
            watch.lap("decide")
            self.progress.working(f"{', '.join(sorted(lost.roles)) or error.actor} died: starting again")
            if "tolaria" in lost.roles.values():
                self._trainer_is_gone()
            to, from_memory = self._last(), self.memory is not None
            fence = to.fence if to is not None else None
            try:
                self.go_back(to, Cause.DEATH, watch.lap)
            finally:  # if this recovery is broken off, the next one journals it
                self.deaths.note(lost, watch.recovery(lost, fence, self.journal.generation, from_memory=from_memory))
            self.deaths.tell()
            self.deaths.await_first_step(watch.ended_at)

    def _trainer_is_gone(self) -> None:
        """Its memory went with it; its successor stands where everything began."""
        self.memory = None
        if self.beginning is not None:
            self.beginning = replace(self.beginning, host=HostCopy.AS_BUILT)

    def roll_back(self, tier: Tier) -> None:
        """Take back all that happened since the last checkpoint. No part of a run calls it yet.

        Raises:
            RollbackDeadlineExceeded: it took longer than its budget; everything was restored all the same.
            RestoreImpossible: no checkpoint was made yet; or, for the fast tier, the trainer keeps none in its memory.
        """
        limits, began_s = self.checkpoints.config, time.monotonic()
        budget_s = limits.fast_rollback_s if tier is Tier.FAST else limits.full_rollback_s
        event = "rollback_fast" if tier is Tier.FAST else "rollback_full"
        severe(event, Severity.ERROR, fence=self.at.fence, generation=self.journal.generation)
        count("esper.rollbacks")
        to = self.memory if tier is Tier.FAST else self.checkpoints.load_latest()
        if to is None:
            raise RestoreImpossible("memory", "the trainer keeps no checkpoint in its memory")
        if to.fence is None:
            raise RestoreImpossible("memory", "no checkpoint was made yet")
        self.go_back(to, Cause.ROLLBACK)
        self.at.tally.rollbacks += 1
        elapsed_s = time.monotonic() - began_s
        self.journal.write(RecordKind.ROLLED_BACK, tier=tier, fence=to.fence, seconds=elapsed_s)
        if elapsed_s > budget_s:
            raise RollbackDeadlineExceeded(tier, elapsed_s, budget_s)

    # -- the one way back ----------------------------------------------------------------------------------------

    def go_back(self, to: FenceState | None, cause: Cause, lap: Callable[[str], None] = lambda _: None) -> None:
        """Take the whole run back to a fence: one transaction over all rooms.

        Args:
            to: None: before fence 0, where every room stands.
            lap: Called with the name of each part of the way when it ends: stop, start, restore.

        Raises:
            StoreCorrupt: a room does not read its own part of `to`.
            RestoreImpossible: the trainer was to have kept its state in memory, and has not.
            ActorLost: a process died on the way.
        """
        if cause is Cause.RESUME:
            self.enter(Phase.REVIVED)  # as it was started, in a generation that is the only one that counts
        else:
            self.enter(Phase.DECIDED)
            fence = to.fence if to is not None else None
            self.journal.succeed(fence)
            self.enter(Phase.SUPERSEDED)
            if cause is Cause.ROLLBACK:
                faults.point("conductor.rollback", round=fence)
            lap("stop")
            self.rooms.crew.revive(self.journal.generation)
            self.deaths.tell()
            self.enter(Phase.REVIVED)
            lap("start")
        if to is None:
            to = self.beginning = self._beginning(HostCopy.AS_BUILT)
        self._restore(to)
        self.enter(Phase.GOING_ON if to.fence is not None else Phase.STARTED)
        lap("restore")

    def _restore(self, kept: FenceState) -> None:
        """Restore every room, in the generation of the journal: the host, Kasmina, Tamiyo, and the nursery last.

        The nursery begins to work at once: on the order that Kasmina gives after her restore, from a snapshot of the
        restored host if that order began at this fence. So these two come before it. It comes after Tamiyo, too: a
        room that refuses its state must not find other processes at work that would have to be stopped again. The host
        comes first of all, because only it can find that its state is not there.
        """
        generation, began_s, rooms = self.journal.generation, time.monotonic(), self.rooms
        with span("esper restore", role="conductor", fence=kept.fence, generation=generation):
            own = LineState.of(kept)
            host = self._restore_host(kept, generation)
            faults.point("conductor.restore", round=kept.fence)
            rooms.kasmina.restore(kept.rooms["kasmina"], generation)
            rooms.tamiyo.restore(kept.rooms["tamiyo"], generation)
            forks = self._shared_forks(kept)
            rooms.incubator.restore({**kept.nursery, **forks})
            view = rooms.kasmina.view(kept.fence) if kept.fence is not None else None
            again = rooms.kasmina.order() if view is not None and view.incubating else None
            if again is not None:  # it is done again, from its first step
                origin = forks["origin"] if forks["origin"] is not None else host
                rooms.incubator.begin(again.order, again.weights, origin)
            if self.memory is None:
                rooms.trainer.keep(kept.fence or 0)
                self.memory = FenceState(kept.fence, HostCopy.IN_MEMORY, kept.rooms, {**kept.nursery, **forks})
                self.beginning = self.memory if kept.fence is None else self.beginning
            self.at.become(kept.fence, own, view)
        self.journal.write(RecordKind.RESTORED, fence=kept.fence, seconds=time.monotonic() - began_s)

    def _restore_host(self, kept: FenceState, generation: int) -> Any:  # Any: from LiveHost.snapshot
        """Returns a snapshot of the restored host."""
        trainer = self.rooms.trainer
        if kept.host is HostCopy.IN_MEMORY:
            if trainer.roll_back(generation) is None:
                raise RestoreImpossible("memory", f"the trainer keeps nothing of fence {kept.fence}")
            return trainer.snapshot()
        self.memory = None
        host = trainer.snapshot() if kept.host is HostCopy.AS_BUILT else self.rooms.crew.shared(kept.host)
        trainer.restore(host, generation)
        return host

    def _shared_forks(self, kept: FenceState) -> dict[str, Any]:  # Any: from LiveHost.snapshot
        """The snapshots of forks as the rooms pass them on; only those from disk are not passable yet."""
        forks = {name: kept.nursery[name] for name in ("twin", "origin")}
        if isinstance(kept.host, HostCopy):
            return forks
        return {name: self.rooms.crew.shared(one) if one is not None else None for name, one in forks.items()}
