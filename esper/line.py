"""A run as one readable page: the line from a measured round to the next decision, fence by fence.

It knows its rooms only by what they answer, so that it is the same in one process and across many.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from esper import faults
from esper.checkpoints import Checkpoints, FenceState
from esper.errors import (
    ActorError,
    ActorLost,
    Drained,
    EmergencyStop,
    EsperError,
    RestoreImpossible,
    RollbackDeadlineExceeded,
    StoreCorrupt,
    all_notes,
)
from esper.journal import Journal, Kind
from esper.leyline.base import Message
from esper.leyline.commands import Command
from esper.leyline.decisions import Hold
from esper.leyline.incubation import Answer, Changed
from esper.leyline.ports import Decider, Inbox, LiveHost, Nursery, Registrar
from esper.leyline.signals import EmergencySignal, Level
from esper.leyline.state import RegistryView, RoundState, TrainingState
from esper.problems import first_problem
from esper.progress import Progress
from esper.recovery import Lost, Recovery, Stopwatch
from esper.summary import Tally, TallyState
from esper.tamiyo.field_reports import FieldReportStore
from esper.telemetry.context import span, trace_id
from esper.telemetry.events import Severity, severe
from esper.telemetry.metrics import count

SIGNALS_AT_A_FENCE = 4096
"""A queue that is filled faster than it is read must not hold a run at a fence: the rest is read at the next one."""


@dataclass
class Rooms:
    """The four that the line goes through: the objects themselves, or handles of their processes."""

    trainer: LiveHost
    tamiyo: Decider
    kasmina: Registrar
    incubator: Nursery
    inbox: Inbox
    counted: Callable[[str], int]
    """Total of a counter in every process but the conductor's own."""
    passed: Callable[[int], None]
    """Learn that a fence was passed."""
    mend: Callable[[], None]
    """Have a successor in the place of each that can be replaced alone and died while nobody asked it. Raises: the
    death of anybody else, or of one that no successor answers."""
    lost: Callable[[EsperError, int | None], Lost]
    """(error, last fence) -> which processes have died. Raises: the error, if no restart answers it."""
    revive: Callable[[int], None]
    """Start successors of all that died, and have every process refuse messages of generations before this one."""
    died_starting: Callable[[], tuple[ActorError, ...]]
    """Deaths, since the last call, of those who were being started; each was started again."""
    replaced: Callable[[], tuple[tuple[Lost, Recovery], ...]]
    """Who was replaced alone since the last call, while all others went on."""
    shared: Callable[[Any], Any]  # Any: a HostSnapshot in this process, and what `LiveHost.snapshot` would give for it
    """A snapshot as the rooms pass it on among themselves."""


@dataclass
class Drain:
    """Somebody's wish that the run end at its next fence; while it starts there is none to wait for."""

    requested: bool = False
    _interruptible: bool = False
    _interrupted: bool = False

    def ask(self) -> None:
        """Wish it, from a signal handler say.

        Raises:
            KeyboardInterrupt: the run is starting, in this thread; `starting` makes `Drained` of it.
        """
        first, self.requested = not self.requested, True
        if first and self._interruptible:
            self._interrupted = True
            raise KeyboardInterrupt

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Around what happens before the first fence.

        Raises:
            Drained: that was asked for, before or meanwhile.
        """
        try:
            self._interruptible = True
            if self.requested:
                raise Drained(0)
            yield
        except KeyboardInterrupt as interrupt:
            if not self._interrupted:  # somebody else's, by Ctrl-C
                raise
            raise Drained(0) from interrupt
        finally:
            self._interruptible = False


class LineState(Message):
    """What the line itself knows that the rest of a run depends on."""

    tally: TallyState
    level: Level | None
    start: dict[str, float]


ROOMS, FORKS = frozenset({"line", "kasmina", "tamiyo"}), frozenset({"twin", "origin", "twin_steps"})
"""What a state of a fence holds at least, beside the host."""


def _line_state(kept: FenceState) -> LineState:
    """The line's own part. Raises: StoreCorrupt: it is none, or the part of another room or fork is not there."""
    lacking = sorted((ROOMS - kept.rooms.keys()) | (FORKS - kept.nursery.keys()))
    if lacking:
        raise StoreCorrupt(f"fence {kept.fence}", f"lacks the state of {', '.join(lacking)}")
    try:
        return LineState.model_validate_json(kept.rooms["line"])
    except ValidationError as error:
        raise StoreCorrupt("the line's state", str(first_problem(error))) from error


class Tier(StrEnum):
    """Where a rollback gets the state from that it goes back to."""

    FAST = "fast"
    """Memory: the trainer's own copy."""
    FULL = "full"
    """Disk: the last checkpoint that loads."""


@dataclass
class Line:
    """The line of one run, fence by fence."""

    rooms: Rooms
    journal: Journal
    store: FieldReportStore
    checkpoints: Checkpoints
    fence_steps: tuple[int, ...]
    growing: bool
    progress: Progress
    drain: Drain
    tally: Tally = field(default_factory=Tally)
    level: Level | None = None
    fence: int | None = None
    """The last one that was passed; None: not even fence 0 was."""
    last_view: RegistryView | None = None
    """Of Kasmina's registry as it is now; None: no fence was held yet."""
    start: Mapping[str, float] = field(default_factory=dict)
    """Means over the test shard before the first step."""
    kept: FenceState | None = None
    """The last fence's, in memory, or what was before the first; None: there is none, or its trainer is gone."""
    new_trainer: bool = False
    """It stands where everything began, and has not been restored yet."""
    beginning: FenceState | None = None
    """What was before the first fence."""
    recoveries: list[Recovery] = field(default_factory=list)
    """From deaths, since the line was made."""
    restarts: int = 0
    """Deaths of actors since then that were answered by a new start."""
    untold: tuple[Lost, Recovery] | None = None
    """The last recovery of the whole run, until it is told."""
    recovered: tuple[int, float] | None = None
    """Place in `recoveries` of the last one of the whole run, and Unix time at which it was over; None: its first step
    has been measured."""
    trace_id: str = ""
    """Of the round that runs, or ran last."""

    def __post_init__(self) -> None:
        self.trainer, self.tamiyo = self.rooms.trainer, self.rooms.tamiyo
        self.kasmina, self.incubator = self.rooms.kasmina, self.rooms.incubator

    def run(self) -> None:
        """All rounds from where it stands to the end.

        Raises:
            Drained: that was asked for; the run ends at a fence, and its checkpoint is committed.
        """
        self.begin()
        while self.passed < self.last:
            self.round()
        self.checkpoints.settle()
        self._hear(self.last)

    def begin(self) -> None:
        """Hold fence 0, unless the line was restored at a later one."""
        self.tell()
        if self.fence is None:
            self._drained(0)
            faults.point("conductor.begin")
            if self.kept is None:
                self._keep_beginning()
            self.start = self.trainer.shard_means("test")
            self._hold_fence(0, self.trainer.untrained())
            self._pass_fence(0)

    def _keep_beginning(self) -> FenceState:
        """Have what is before anything happens kept in memory: a death before the first checkpoint goes back to it."""
        self.trainer.keep(0)
        self.beginning = self.kept = FenceState(None, None, self.state(), self.incubator.state(0))
        return self.beginning

    def round(self) -> None:
        """One round, and the fence that it ends at."""
        self._drained(self.passed)
        fence = self.passed + 1
        with span("esper round", role="conductor", fence=fence):
            self.trace_id = trace_id()
            training = self._train(fence)
            self._hold_fence(fence, training)
            self._pass_fence(fence)

    @property
    def last(self) -> int:
        """The fence at which the run ends."""
        return len(self.fence_steps) - 1

    @property
    def passed(self) -> int:
        """The last fence that was passed."""
        assert self.fence is not None, "no fence was passed yet"
        return self.fence

    def _drained(self, fence: int) -> None:
        if self.drain.requested:
            if self.fence is not None and (self.kept is None or self.kept.fence != fence):
                self._checkpoint(fence)
            self.checkpoints.settle()
            raise Drained(fence)

    def _pass_fence(self, fence: int) -> None:
        """Have the state of the run kept: from here it goes on if it is stopped or taken back."""
        faults.point("conductor.fence", round=fence)
        self.fence = fence
        self.rooms.passed(fence)
        self._time_first_step()
        if self.drain.requested or self.checkpoints.due(fence, self.last):
            self._checkpoint(fence)

    def _checkpoint(self, fence: int) -> None:
        with self.tally.checkpoint():
            rooms = self.state()
            self.kept = None  # two copies of the twin at a time would be one too many
            kept = FenceState(fence, None, rooms, self.incubator.state(fence))
            self.checkpoints.begin(self.trainer, fence, kept.rooms, kept.nursery)
            self.kept = kept

    # -- as part of a checkpoint ---------------------------------------------------------------------------------

    def state(self) -> dict[str, str]:
        """What decides the future beside the host and its forks, by room, as text."""
        own = LineState(tally=self.tally.state(), level=self.level, start=dict(self.start))
        return {"line": own.model_dump_json(), "kasmina": self.kasmina.state(), "tamiyo": self.tamiyo.state()}

    def restore(self, kept: FenceState) -> None:
        """Become what was kept at a fence, in every room, in the generation of the journal.

        Raises:
            StoreCorrupt: a room does not know what was kept as its own.
            RestoreImpossible: the trainer was to have kept its state in memory, and has not.
        """
        generation, began_s = self.journal.generation, time.monotonic()
        with span("esper restore", role="conductor", fence=kept.fence, generation=generation):
            own = _line_state(kept)
            host = self._restore_host(kept, generation)
            faults.point("conductor.restore", round=kept.fence)
            self.kasmina.restore(kept.rooms["kasmina"], generation)
            self.tamiyo.restore(kept.rooms["tamiyo"], generation)
            forks = self._passed_on(kept)
            self.incubator.restore({**kept.nursery, **forks})
            self.last_view = self.kasmina.view(kept.fence) if kept.fence is not None else None
            order = self.kasmina.order() if self.last_view is not None and self.last_view.incubating else None
            if order is not None:  # it is done again, from its first step
                self.incubator.begin(order, forks["origin"] if forks["origin"] is not None else host)
            if self.kept is None:
                self.trainer.keep(kept.fence or 0)
                self.kept = FenceState(kept.fence, None, kept.rooms, {**kept.nursery, **forks})
            self.fence, self.start, self.new_trainer = kept.fence, own.start, False
            self.level = max((level for level in (self.level, own.level) if level is not None), default=None)
            rollbacks = self.tally.rollbacks  # what happened is not unhappened
            self.tally.restore(own.tally)
            self.tally.rollbacks = max(rollbacks, own.tally.rollbacks)
        self.journal.write(Kind.RESTORED, fence=kept.fence, seconds=time.monotonic() - began_s)

    def _restore_host(self, kept: FenceState, generation: int) -> Any:  # Any: from LiveHost.snapshot
        """Returns a snapshot of what the host is then."""
        if kept.host is not None:
            self.kept, host = None, self.rooms.shared(kept.host)
            self.trainer.restore(host, generation)
            return host
        if not self.new_trainer and self.trainer.roll_back(generation) is None:
            raise RestoreImpossible("memory", f"the trainer keeps nothing of fence {kept.fence}")
        return self.trainer.snapshot()

    def _passed_on(self, kept: FenceState) -> dict[str, Any]:  # Any: from LiveHost.snapshot
        """The snapshots of forks, as the rooms pass them on; what was kept in memory is so already."""
        forks = {name: kept.nursery[name] for name in ("twin", "origin")}
        if kept.host is None:
            return forks
        return {name: self.rooms.shared(one) if one is not None else None for name, one in forks.items()}

    def roll_back(self, tier: Tier) -> None:
        """Take back all that happened since the last checkpoint: one transaction over all rooms, in a new generation.

        Raises:
            RollbackDeadlineExceeded: it took longer than its budget; everything was restored all the same.
            RestoreImpossible: there is nothing to go back to.
        """
        limits, began_s = self.checkpoints.config, time.monotonic()
        budget_s = limits.fast_rollback_s if tier is Tier.FAST else limits.full_rollback_s
        event = "rollback_fast" if tier is Tier.FAST else "rollback_full"
        severe(event, Severity.ERROR, fence=self.fence, generation=self.journal.generation)
        count("esper.rollbacks")
        kept = self.kept if tier is Tier.FAST else self.checkpoints.load_latest()
        if kept is None or kept.fence is None:
            raise RestoreImpossible("memory", "no fence was passed yet")
        self.journal.succeed(kept.fence)
        faults.point("conductor.rollback", round=kept.fence)
        self.rooms.revive(self.journal.generation)
        self.tell()
        self.restore(kept)
        self.tally.rollbacks += 1
        elapsed_s = time.monotonic() - began_s
        self.journal.write(Kind.ROLLED_BACK, tier=tier, fence=kept.fence, seconds=elapsed_s)
        if elapsed_s > budget_s:
            raise RollbackDeadlineExceeded(tier, elapsed_s, budget_s)

    # -- after a death -------------------------------------------------------------------------------------------

    def recover(self, error: EsperError) -> None:
        """Go on from the last fence after the death of an actor, in a new generation, with a successor of it.

        Raises:
            EsperError: `error` itself, where it is no death that a restart answers; or a successor did not come up.
            RestartIntensityExceeded: it was one death too many.
            ActorLost: an actor died meanwhile.
        """
        watch = Stopwatch(error)
        lost = self.rooms.lost(error, self.fence)
        self.tell()
        with span("esper recover", role="conductor", fence=self.fence):
            watch.lap("decide")
            self.progress.working(f"{', '.join(sorted(lost.roles)) or error.actor} died: starting again")
            if "tolaria" in lost.roles.values():
                self.kept, self.new_trainer = None, True
            kept = self._last_kept()
            fence, from_memory = kept.fence if kept is not None else None, self.kept is not None
            try:
                self._start_again(kept, fence, watch)
            except ActorLost:  # another death broke it off: the next recovery tells of it
                self.untold = lost, watch.recovery(lost, fence, self.journal.generation, from_memory=from_memory)
                raise
            self.untold = lost, watch.recovery(lost, fence, self.journal.generation, from_memory=from_memory)
            self.tell()
            self.recovered = len(self.recoveries) - 1, watch.ended_at

    def _start_again(self, kept: FenceState | None, fence: int | None, watch: Stopwatch) -> None:
        self.journal.succeed(fence)
        watch.lap("stop")
        self.rooms.revive(self.journal.generation)
        self.tell()
        watch.lap("start")
        self.restore(kept if kept is not None else self._keep_beginning())
        watch.lap("restore")

    def _last_kept(self) -> FenceState | None:
        """What is in memory, if the trainer that keeps it is alive; else the last checkpoint, or how it all began.

        None: nothing has happened yet, and every room stands where it began.
        """
        if self.kept is not None:
            return self.kept
        self.checkpoints.give_up()
        return self.checkpoints.load_latest() if self.checkpoints.committed else self.beginning

    def tell(self) -> None:
        """Write down the deaths that new starts have answered since the last call."""
        for death in self.rooms.died_starting():
            self.restarts += 1
            told = {"actor": death.actor, "error": type(death).__name__, "detail": str(death)}
            self.journal.write(Kind.DIED_STARTING, **told, notes=all_notes(death))
            severe("actor_died_starting", Severity.ERROR, **told)
            count("esper.actor.restarts", role=death.role)
        untold, self.untold = self.untold, None
        for lost, recovery in (*self.rooms.replaced(), *([untold] if untold is not None else [])):
            self.recoveries.append(recovery)
            self.restarts += len(lost.roles)
            self.journal.write(Kind.ACTOR_RESTARTED, recovery)
            for name, role in lost.roles.items():
                severe("actor_restarted", Severity.ERROR, actor=name, error=recovery.error, fence=recovery.fence)
                count("esper.actor.restarts", role=role)

    def _time_first_step(self) -> None:
        """Complete the last recovery with when the first step after it was done."""
        if self.recovered is not None and (at := self.trainer.first_step_at()) is not None:
            place, over_at = self.recovered
            done = self.recoveries[place].model_copy(update={"first_step_s": max(0.0, at - over_at)})
            self.recoveries[place], self.recovered = done, None
            self.journal.write(Kind.RECOVERED, done)

    def _train(self, fence: int) -> TrainingState:
        """One round of the live host, and of its twin beside it."""
        steps = self.fence_steps[fence] - self.fence_steps[fence - 1]
        self.progress.working(f"round {fence}: {steps} steps")
        if self.view.has_twin:
            with self.tally.waiting():
                self.incubator.advance_twin(self.fence_steps[fence])
        with self.tally.training(steps, self.view.step_flops):
            training = self.trainer.run_round(fence, self.fence_steps[fence])
        self.journal.write(Kind.ROUND_ENDED, training)
        return training

    def _hold_fence(self, fence: int, training: TrainingState) -> None:
        """Between two rounds: conclude, compare, advance what is due, reset what was culled, germinate anew."""
        with self.tally.fence():
            self._hear(fence)
            self.last_view = self.kasmina.view(fence)
            if self.growing:
                self._conclude(fence)
                self._compare_with_twin(fence)
                self._advance(fence, training)
                self._reset(fence)
                self._germinate(fence, training)
        self.progress.fence(self._state(training), self.tally)

    @property
    def view(self) -> RegistryView:
        """Of Kasmina's registry as it is now."""
        assert self.last_view is not None, "no fence was held yet"
        return self.last_view

    def _state(self, training: TrainingState) -> RoundState:
        return RoundState.of(self.view, training, self.level)

    def _hear(self, fence: int) -> None:
        """Take in emergency signals: the highest level so far holds for the rest of the run.

        Raises:
            EmergencyStop: one of them is a HALT.
        """
        self.rooms.mend()
        self.tell()
        if (halt := self._take_signals(SIGNALS_AT_A_FENCE)) is not None:
            raise EmergencyStop(halt.reason, halt.signal_id, self.fence_steps[fence])

    def _take_signals(self, most: float) -> EmergencySignal | None:
        """Journal the signals that wait, batch by batch; each is acknowledged when its record is durable.

        Args:
            most: After so many signals the rest waits for the next call.

        Returns:
            The most urgent HALT among them.
        """
        heard, halts = 0, list[EmergencySignal]()
        while heard < most and (signals := self.rooms.inbox.pending()):
            self.journal.write_many([(Kind.SIGNAL, signal) for signal in signals])
            self.rooms.inbox.acknowledge([signal.signal_id for signal in signals])
            self.level = max(self.level or Level.NOTICE, *(signal.level for signal in signals))
            halts += [signal for signal in signals if signal.level is Level.HALT]
            heard += len(signals)
        return halts[0] if halts else None

    def hear_out(self) -> None:
        """Close the queue of emergency signals and journal all that it holds: the last thing before the run ends.

        A HALT among them comes too late to stop anything; the journal has it.
        """
        self.rooms.inbox.close()
        self._take_signals(math.inf)

    @contextmanager
    def explaining_halts(self) -> Iterator[None]:
        """Raise a trainer's `EmergencyStop` again with its signal: the trainer saw only the word."""
        try:
            yield
        except EmergencyStop as stop:
            halt = self._why(stop) if not stop.signal_id else None
            if halt is None:
                raise
            raise EmergencyStop(halt.reason, halt.signal_id, stop.step) from stop

    def _why(self, stop: EmergencyStop) -> EmergencySignal | None:
        try:
            return self._take_signals(SIGNALS_AT_A_FENCE)
        except ActorError as gone:  # it stays a stop if nobody can say why any more
            stop.add_note(f"the emergency queue could not be asked why: {gone}")
            return None

    def _conclude(self, fence: int) -> None:
        if not self.view.due:
            return
        self.progress.working(f"round {fence}: incubating")
        with self.tally.waiting():
            result = self.incubator.collect()
        self.tally.incubator_steps += result.fork_steps
        self.tally.incubator_flops += result.flops
        self.tally.growth = self.tally.growth.concluded()
        self.journal.write(Kind.INCUBATION_ENDED, result)
        self._change(self.kasmina.conclude(result, fence))

    def _compare_with_twin(self, fence: int) -> None:
        if self.view.compares_with_twin:
            live = self.trainer.sample_losses("gate", fence)
            with self.tally.waiting():
                twin = self.incubator.twin_losses(fence)
            compared = self.kasmina.compare(live, twin)
            self.tally.incubator_flops += compared.flops
            self.journal.write(Kind.TWIN_COMPARED, compared.losses)

    def _advance(self, fence: int, training: TrainingState) -> None:
        """Have the next gate of every due seed judged, one after the other: what one does may end another."""
        observation = self.trainer.observe(fence, self.view.stages)
        while (command := self.tamiyo.advance(self._state(training))) is not None:
            self._change(self.kasmina.advance(self._sent(command), fence, observation))

    def _reset(self, fence: int) -> None:
        if seeds := self.view.resetting:
            self._change(self.kasmina.reset(self.trainer.compare_with_unseeded(seeds), fence))

    def _germinate(self, fence: int, training: TrainingState) -> None:
        verdict = self.tamiyo.decide(self._state(training))
        if verdict.decision is not None:
            self.journal.write(Kind.DECISION, verdict.decision)
        if isinstance(verdict.outcome, Hold):
            self.tally.growth = self.tally.growth.held(verdict.outcome)
            self.journal.write(Kind.HOLD, verdict.outcome)
            self.progress.hold(verdict.outcome)
            return
        command = self._sent(verdict.outcome)
        received = self.kasmina.receive(command, fence)
        snapshot = self.trainer.snapshot()
        with self.tally.waiting():
            births = self.incubator.births(received.plans, snapshot)
        self.tally.incubator_flops += received.flops
        changed = self.kasmina.carry_out(command.command_id, fence, births)
        self._change(changed)
        if changed.answer.order is not None:
            self.incubator.begin(changed.answer.order, snapshot)

    def _sent(self, command: Command) -> Command:
        self.journal.write(Kind.COMMAND, command)
        return command

    def _change(self, changed: Changed) -> None:
        self.last_view = changed.view
        self._take(changed.answer)

    def _take(self, answer: Answer) -> None:
        """Journal what Kasmina answered, carry its plans out, and let Tamiyo learn of it."""
        for verdict in answer.gates:
            self.tally.growth = self.tally.growth.judged(verdict)
        self.journal.write_many([(Kind.GATE, report) for report in answer.gates])
        self.journal.write_many([(Kind.TRANSITION, step) for step in answer.transitions])
        if answer.order is not None:
            self.journal.write(Kind.INCUBATION_BEGUN, answer.order.model_copy(update={"plans": ()}))
        if answer.keep_twin:
            self.incubator.keep_twin()
        for plan in answer.plans:
            self.journal.write(Kind.PLAN_APPLIED, self.trainer.apply(plan))
        for report in answer.field_reports:
            self.store.append(report)
            self.journal.write(Kind.FIELD_REPORT, report)
            self.tamiyo.remember(report)
        self.progress.answer(answer)
