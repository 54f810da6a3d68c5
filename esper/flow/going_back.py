"""Restores a whole run to an earlier fence: after a death, for a rollback, and when a run is resumed. It also stores
the states to restore. This module stores the state of each checkpoint in memory; `esper.flow.checkpoints` stores it on
disk.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from esper import faults
from esper.archive.journal import Journal, RecordKind
from esper.archive.recovery_record import Stopwatch
from esper.errors import EsperError, RestoreImpossible, RollbackDeadlineExceeded, StageConflict
from esper.flow.answered import check_answered
from esper.flow.checkpoints import Checkpoints, FenceState, HostCopy
from esper.flow.crew import Components
from esper.flow.death_log import DeathLog
from esper.flow.position import LineState, Position
from esper.flow.progress import Progress
from esper.leyline.commands import Command
from esper.telemetry.context import continue_from, span, traceparent
from esper.telemetry.events import Severity, reported, severe
from esper.telemetry.metrics import count, observe, timed

T = TypeVar("T")

MOST_RETURNS = 10
"""Largest number of commands to go back that are obeyed at one fence. Without this limit, a policy that goes back for
the same reason again and again would never end its run.
"""


class Tier(StrEnum):
    """Source of the state that a rollback restores."""

    FAST = "fast"
    """The copy in the trainer's memory."""
    FULL = "full"
    """The last checkpoint on disk that loads."""


class Cause(StrEnum):
    """Reason for a restore."""

    DEATH = "death"
    ROLLBACK = "rollback"
    """Rollback: everything after a checkpoint is taken back."""
    RESUME = "resume"
    """The run is resumed in a new process. The generation of the earlier process is already superseded, and every
    component is new."""


class Phase(StrEnum):
    """Progress of a restore. A round runs only in the phase GOING_ON."""

    STARTED = "started"
    """Every component is in its initial state. Fence 0 is held next, or the components are restored."""
    GOING_ON = "going on"
    """Every component is at the last fence, or in the round after it."""
    DECIDED = "decided"
    """The fence to restore is known."""
    SUPERSEDED = "superseded"
    """The journal has a new generation. Records of the old generation after the fence to restore are not valid any
    more."""
    REVIVED = "revived"
    """Every process is up and refuses messages of older generations. Some components may be restored already."""


NEXT: Mapping[Phase, frozenset[Phase]] = {
    Phase.STARTED: frozenset({Phase.GOING_ON, Phase.DECIDED, Phase.REVIVED}),
    Phase.GOING_ON: frozenset({Phase.DECIDED}),
    Phase.DECIDED: frozenset({Phase.SUPERSEDED, Phase.DECIDED}),
    Phase.SUPERSEDED: frozenset({Phase.REVIVED, Phase.DECIDED}),
    Phase.REVIVED: frozenset({Phase.GOING_ON, Phase.STARTED, Phase.DECIDED}),
}
"""The phases that may follow each phase. A death interrupts a restore in any phase; the next restore begins with
DECIDED."""


@dataclass
class GoingBack:
    """Stores the states to which a run can go back, and restores them in all components."""

    components: Components
    journal: Journal
    checkpoints: Checkpoints
    progress: Progress
    deaths: DeathLog
    at: Position
    phase: Phase = Phase.STARTED
    memory: FenceState | None = None
    """State of the last checkpoint, with the host in the trainer's memory. None: no checkpoint was made yet, a new
    state is being stored, or the trainer died. A death then restores from disk."""
    beginning: FenceState | None = None
    """The state before fence 0. None: it was not stored yet, and is still the state of every component."""
    round: str = ""
    """Traceparent of the last round that began. A recovery belongs to the trace of the round that failed."""
    recovery: str = ""
    """Traceparent of the last recovery, until a round has ended after it. The next round belongs to its trace, so that
    the trace shows the first good step. "": no recovery."""
    returns: Counter[int] = field(default_factory=Counter)
    """Fence -> number of commands to go back that were made at this fence and obeyed in this process."""

    def enter(self, phase: Phase) -> None:
        """Enter a phase, which `NEXT` must allow after the present phase."""
        assert phase in NEXT[self.phase], f"the phase cannot change from {self.phase} to {phase}"
        self.phase = phase

    # -- the states to restore -----------------------------------------------------------------------------------

    def keep_beginning(self) -> None:
        """Store the state before fence 0 in memory. This state is restored if a process dies before the first
        checkpoint.
        """
        if self.memory is None:
            self.components.trainer.copy_state(0)
            self.beginning = self.memory = self._beginning(HostCopy.IN_MEMORY)

    def store(self, fence: int) -> None:
        """Store the state of a fence in memory, and start to write it to disk.

        Raises:
            StoreWriteFailed: the save before this one failed.
        """
        with self.at.tally.checkpoint(), timed("esper.checkpoint.stall.duration"):
            states = self._component_states()
            self.memory = None  # `memory` has a copy of the twin; it is freed before the next copy is made
            saved = FenceState(fence, HostCopy.IN_MEMORY, states, self.components.incubator.state(fence))
            self.checkpoints.begin(self.components.trainer, fence, saved.states, saved.incubation)
            self.memory = saved

    def _beginning(self, host: HostCopy) -> FenceState:
        return FenceState(None, host, self._component_states(), self.components.incubator.state(0))

    def _component_states(self) -> dict[str, str]:
        """Return the states of the line, Kasmina and Tamiyo, by component, as text."""
        return {
            "line": self.at.state(),
            "kasmina": self.components.kasmina.state(),
            "tamiyo": self.components.tamiyo.state(),
        }

    def _last(self) -> FenceState | None:
        """Return the state in memory if its trainer is alive. Otherwise return the last checkpoint that loads, or the
        state before fence 0.

        None: no state was stored yet, so every component is in its initial state.
        """
        if self.memory is not None:
            return self.memory
        self.checkpoints.give_up()
        return self.checkpoints.load_latest() if self.checkpoints.committed else self.beginning

    # -- restores after a death, and rollbacks -------------------------------------------------------------------

    def outlive(self, work: Callable[[], T]) -> T:
        """Call `work` until it returns. After each death, restore the run to a fence and call `work` again.

        Raises:
            EsperError: the error of `work`, if processes are not restarted after it; or the error of a process that did
                not come up.
            RestartIntensityExceeded: a process died too often.
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
        """Restore the run to the last stored state after the death of a process.

        Raises:
            EsperError: `error`, if processes are not restarted after it; or the error of a process that did not come
                up.
            RestartIntensityExceeded: a process died too often.
            ActorLost: another process died during the restore.
        """
        watch = Stopwatch(error)
        with continue_from(self.round):
            # this comes before `lost`, which may raise: the recovery that this error interrupted must be journaled
            self.deaths.tell()
            lost = self.components.crew.lost(error, self.at.fence)
            self.deaths.tell()
        with continue_from(self.round), span("esper recover", role="conductor", fence=self.at.fence):
            self.recovery = traceparent()
            watch.lap("decide")
            self.progress.working(f"{', '.join(sorted(lost.roles)) or error.actor} died: starting again")
            if "tolaria" in lost.roles.values():
                self._trainer_is_gone()
            to, from_memory = self._last(), self.memory is not None
            fence = to.fence if to is not None else None
            try:
                self.go_back(to, Cause.DEATH, watch.lap)
            finally:  # if this recovery is interrupted, the next one journals it
                self.deaths.note(lost, watch.recovery(lost, fence, self.journal.generation, from_memory=from_memory))
            self.deaths.tell()
            self.deaths.await_first_step(watch.ended_at)

    def _trainer_is_gone(self) -> None:
        """Drop the state that was in the memory of the trainer that died. The new trainer begins in its initial
        state.
        """
        self.memory = None
        if self.beginning is not None:
            self.beginning = replace(self.beginning, host=HostCopy.AS_BUILT)

    def obey(self, command: Command, fence: int) -> None:
        """Carry out a command to go back, at a fence that is not passed yet.

        Raises:
            CommandRejected, DependencyViolationError: the command was refused; nothing was changed.
            StageConflict: the run went back from this fence `MOST_RETURNS` times already; nothing was changed.
            EsperError: see `roll_back`.
        """
        self.journal.write(RecordKind.COMMAND, command)
        self.checkpoints.settle()
        if self.returns[fence] >= MOST_RETURNS:
            detail = f"the run went back from fence {fence} {MOST_RETURNS} times already"
            refusal = StageConflict("stage_conflict", command.command_id, detail)
            count("esper.command.rejections", reason=refusal.reason)
            told = {"command_id": command.command_id, "reason": refusal.reason}
            raise reported(refusal, "command_rejected", Severity.ERROR, **told)
        check_answered(command, self.components.kasmina.permit(command, fence, self.checkpoints.fences))
        to = command.to_fence
        assert to is not None, "admission requires it"
        self.progress.working(f"going back from fence {fence} to fence {to}")
        self.returns[fence] += 1
        self.roll_back(Tier.FAST if self.memory is not None and self.memory.fence == to else Tier.FULL, to)

    def roll_back(self, tier: Tier, to_fence: int | None = None) -> None:
        """Take the run back to a checkpoint although no process has died.

        Args:
            to_fence: Fence of the checkpoint. For the fast tier it must be the fence of the copy in memory. None: the
                last checkpoint.

        Raises:
            RollbackDeadlineExceeded: the rollback took longer than its limit. The restore was complete.
            RestoreImpossible: no checkpoint was made yet; or, for the fast tier, the trainer's memory has no copy.
        """
        name = "rollback fast" if tier is Tier.FAST else "rollback full"
        with span(name, role="conductor", fence=self.at.fence, to_fence=to_fence):
            self._roll_back(tier, to_fence)

    def _roll_back(self, tier: Tier, to_fence: int | None) -> None:
        limits, began_s = self.checkpoints.config, time.monotonic()
        budget_s = limits.fast_rollback_s if tier is Tier.FAST else limits.full_rollback_s
        event = "rollback_fast" if tier is Tier.FAST else "rollback_full"
        severe(event, Severity.ERROR, fence=self.at.fence, generation=self.journal.generation)
        count("esper.rollbacks", tier=str(tier))
        to = self.memory if tier is Tier.FAST else self._stored(to_fence)
        if to is None:
            raise RestoreImpossible("memory", "the trainer has no checkpoint in its memory")
        if to.fence is None:  # only for the tier FAST: for FULL `_stored` raises
            raise RestoreImpossible("memory", "no checkpoint was made yet")
        # counted before the restore: after a death in it the policy must not go back once more
        self.at.tally.rollbacks += 1
        self.go_back(to, Cause.ROLLBACK)
        elapsed_s = time.monotonic() - began_s
        observe("esper.rollback.duration", elapsed_s, tier=str(tier))
        self.journal.write(RecordKind.ROLLED_BACK, tier=tier, fence=to.fence, seconds=elapsed_s)
        if elapsed_s > budget_s:
            raise RollbackDeadlineExceeded(tier, elapsed_s, budget_s)

    def _stored(self, fence: int | None) -> FenceState:
        """Load the checkpoint of a fence. None: the last checkpoint. The copy in memory is dropped, because it may be
        of a later fence, and would be restored after a death during this restore.
        """
        to = self.checkpoints.load_latest() if fence is None else self.checkpoints.load(fence)
        self.memory = None
        return to

    # -- the restore ---------------------------------------------------------------------------------------------

    def go_back(self, to: FenceState | None, cause: Cause, lap: Callable[[str], None] = lambda _: None) -> None:
        """Restore the whole run to a fence, in one transaction over all components.

        Args:
            to: The state to restore. None: the state before fence 0, which every component has right after its start.
            lap: Called at the end of each part of the restore, with the name of the part: stop, start, restore.

        Raises:
            StoreCorrupt: a component cannot read its part of `to`.
            RestoreImpossible: `to` should be in the trainer's memory, but the trainer does not have it.
            ActorLost: a process died during the restore.
        """
        if cause is Cause.RESUME:
            self.enter(Phase.REVIVED)  # the takeover began the new generation and started every component
        else:
            self.enter(Phase.DECIDED)
            fence = to.fence if to is not None else None
            self.journal.begin_generation(fence)
            self.enter(Phase.SUPERSEDED)
            if cause is Cause.ROLLBACK:
                faults.point("conductor.rollback", round=fence)
            lap("stop")
            self.components.crew.revive(self.journal.generation)
            self.deaths.tell()
            self.enter(Phase.REVIVED)
            lap("start")
        if to is None:
            to = self.beginning = self._beginning(HostCopy.AS_BUILT)
        self._restore(to)
        self.enter(Phase.GOING_ON if to.fence is not None else Phase.STARTED)
        lap("restore")

    def _restore(self, saved: FenceState) -> None:
        """Restore every component in the generation of the journal: host, Kasmina, Tamiyo, incubation, in this order.

        The host comes first because its state in memory may be missing. In that case the restore must fail before
        another component changes. Incubation comes last because it begins at once to work on the order that the
        restored Kasmina returns. If that order began at this fence, incubation needs a snapshot of the restored host.
        Tamiyo comes before incubation so that no process is at work if Tamiyo refuses its state.
        """
        generation, began_s, components = self.journal.generation, time.monotonic(), self.components
        with span("checkpoint restore", role="conductor", fence=saved.fence, generation=generation):
            own = LineState.of(saved)
            host = self._restore_host(saved, generation)
            faults.point("conductor.restore", round=saved.fence)
            components.kasmina.restore(saved.states["kasmina"], generation)
            components.tamiyo.restore(saved.states["tamiyo"], generation)
            forks = self._shared_forks(saved)
            components.incubator.restore({**saved.incubation, **forks})
            view = components.kasmina.view(saved.fence) if saved.fence is not None else None
            again = components.kasmina.order() if view is not None and view.incubating else None
            if again is not None:  # this repeats the incubation from its first step
                origin = forks["origin"] if forks["origin"] is not None else host
                components.incubator.begin(again.order, again.weights, origin)
            if self.memory is None:
                components.trainer.copy_state(saved.fence or 0)
                self.memory = FenceState(saved.fence, HostCopy.IN_MEMORY, saved.states, {**saved.incubation, **forks})
                self.beginning = self.memory if saved.fence is None else self.beginning
            self.at.become(saved.fence, own, view)
        self.journal.write(RecordKind.RESTORED, fence=saved.fence, seconds=time.monotonic() - began_s)

    def _restore_host(self, saved: FenceState, generation: int) -> Any:  # Any: from LiveHost.snapshot
        """Restore the host, and return a snapshot of it."""
        trainer = self.components.trainer
        if saved.host is HostCopy.IN_MEMORY:
            if trainer.roll_back(generation) is None:
                raise RestoreImpossible("memory", f"the trainer has no copy of fence {saved.fence}")
            return trainer.snapshot()
        self.memory = None
        host = trainer.snapshot() if saved.host is HostCopy.AS_BUILT else self.components.crew.shared(saved.host)
        trainer.restore(host, generation)
        return host

    def _shared_forks(self, saved: FenceState) -> dict[str, Any]:  # Any: from LiveHost.snapshot
        """Return the snapshots of forks in a form that components can pass on. Snapshots from disk are converted."""
        forks = {name: saved.incubation[name] for name in ("twin", "origin")}
        if isinstance(saved.host, HostCopy):
            return forks
        return {name: self.components.crew.shared(one) if one is not None else None for name, one in forks.items()}
