"""A run as one readable page: the line from a measured round to the next decision, fence by fence.

The line knows its rooms only by what they answer, so that it is the same in one process and across many.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from esper import faults
from esper.archive.journal import Journal, Kind
from esper.errors import Drained
from esper.flow.checkpoints import Checkpoints
from esper.flow.crew import Rooms
from esper.flow.death_log import DeathLog
from esper.flow.emergency_watch import SignalWatch
from esper.flow.going_back import GoingBack, Phase
from esper.flow.position import Position
from esper.flow.progress import Progress
from esper.flow.stopping import Drain
from esper.flow.tally import Tally
from esper.leyline.commands import Command
from esper.leyline.decisions import Hold
from esper.leyline.incubation import Changed
from esper.leyline.state import RegistryView, RoundState, TrainingState
from esper.tamiyo.field_reports import FieldReportStore
from esper.telemetry.context import span, trace_id


@dataclass
class Line:
    """The line of one run, fence by fence.

    Call order: `begin` once, and again after the run went back; then `round`, or `train` and `hold`, for each fence.
    """

    rooms: Rooms
    journal: Journal
    store: FieldReportStore
    checkpoints: Checkpoints
    fence_steps: tuple[int, ...]
    """The optimizer step of each fence."""
    growing: bool
    progress: Progress
    drain: Drain
    at: Position = field(default_factory=Position)
    trace_id: str = ""
    """Of the round that runs, or ran last."""

    def __post_init__(self) -> None:
        self.watch = SignalWatch(self.rooms.inbox, self.journal, self.at)
        self.deaths = DeathLog(self.rooms.crew, self.journal)
        self.back = GoingBack(self.rooms, self.journal, self.checkpoints, self.progress, self.deaths, self.at)

    def run(self) -> None:
        """All rounds from where the run is to the end.

        Raises:
            Drained: a stop was requested; the run ends at a fence, and its checkpoint is committed.
            EmergencyStop: a HALT was published.
        """
        self.begin()
        while self.passed < self.last:
            self.round()
        self.checkpoints.settle()
        self._hear(self.last)

    def begin(self) -> None:
        """Hold fence 0, unless the run is beyond it."""
        self.deaths.tell()
        if self.back.phase is Phase.STARTED:
            self._drained(0)
            faults.point("conductor.begin")
            self.back.keep_beginning()
            self.at.start = self.rooms.trainer.shard_means("test")
            self.hold(0, self.rooms.trainer.untrained())
            self.back.enter(Phase.GOING_ON)

    def round(self) -> None:
        """One round, and the fence that it ends at."""
        self._drained(self.passed)
        fence = self.passed + 1
        with span("esper round", role="conductor", fence=fence):
            self.trace_id = trace_id()
            self.hold(fence, self.train(fence))

    def train(self, fence: int) -> TrainingState:
        """Train the live host up to a fence, and its twin beside it. `hold` follows, with what is returned."""
        assert self.back.phase is Phase.GOING_ON, f"no round runs in phase {self.back.phase}"
        steps = self.fence_steps[fence] - self.fence_steps[fence - 1]
        self.progress.working(f"round {fence}: {steps} steps")
        if self.view.has_twin:
            with self.tally.waiting():
                self.rooms.incubator.advance_twin(self.fence_steps[fence])
        with self.tally.training(steps, self.view.step_flops):
            training = self.rooms.trainer.run_round(fence, self.fence_steps[fence])
        self.journal.write(Kind.ROUND_ENDED, training)
        return training

    def hold(self, fence: int, training: TrainingState) -> None:
        """Hold a fence: change what is due, decide what to try, and keep the state of the run."""
        with self.tally.fence():
            self._hear(fence)
            self.at.view = self.rooms.kasmina.view(fence)
            if self.growing:
                self._conclude(fence)
                self._compare_with_twin(fence)
                self._advance(fence, training)
                self._reset(fence)
                self._germinate(fence, training)
        self.progress.fence(self._state(training), self.tally)
        self._pass(fence)

    def _pass(self, fence: int) -> None:
        """From here the run goes on if it is stopped or taken back."""
        faults.point("conductor.fence", round=fence)
        self.at.fence = fence
        self.rooms.crew.passed(fence)
        self.deaths.time_first_step(self.rooms.trainer.first_step_at)
        if self.drain.requested or self.checkpoints.due(fence, self.last):
            self.back.keep(fence)

    def _drained(self, fence: int) -> None:
        """Raises: Drained: a stop was requested."""
        if self.drain.requested:
            if self.at.fence is not None and (self.back.memory is None or self.back.memory.fence != fence):
                self.back.keep(fence)
            self.checkpoints.settle()
            raise Drained(fence)

    # -- where it is -----------------------------------------------------------------------------------------------

    @property
    def tally(self) -> Tally:
        """What the run has cost until now."""
        return self.at.tally

    @property
    def last(self) -> int:
        """The fence at which the run ends."""
        return len(self.fence_steps) - 1

    @property
    def passed(self) -> int:
        """The last fence that was passed."""
        assert self.at.fence is not None, "no fence was passed yet"
        return self.at.fence

    @property
    def view(self) -> RegistryView:
        """Kasmina's registry as it is now."""
        assert self.at.view is not None, "no fence was held yet"
        return self.at.view

    def _state(self, training: TrainingState) -> RoundState:
        return RoundState.of(self.view, training, self.at.level)

    # -- at a fence ------------------------------------------------------------------------------------------------

    def _hear(self, fence: int) -> None:
        """Restart what died alone, and read the emergency signals. Raises: EmergencyStop, ActorLost."""
        self.rooms.crew.mend()
        self.deaths.tell()
        self.watch.hear(self.fence_steps[fence])

    def _conclude(self, fence: int) -> None:
        if not self.view.due:
            return
        self.progress.working(f"round {fence}: incubating")
        with self.tally.waiting():
            result = self.rooms.incubator.collect()
        self.tally.incubator_steps += result.fork_steps
        self.tally.incubator_flops += result.flops
        self.tally.growth = self.tally.growth.concluded()
        self.journal.write(Kind.INCUBATION_ENDED, result)
        self._take(self.rooms.kasmina.conclude(result, fence))

    def _compare_with_twin(self, fence: int) -> None:
        if self.view.compares_with_twin:
            live = self.rooms.trainer.sample_losses("gate", fence)
            with self.tally.waiting():
                twin = self.rooms.incubator.twin_losses(fence)
            compared = self.rooms.kasmina.compare(live, twin)
            self.tally.incubator_flops += compared.flops
            self.journal.write(Kind.TWIN_COMPARED, compared.losses)

    def _advance(self, fence: int, training: TrainingState) -> None:
        """Have the next gate of every due seed judged, one after the other: what one does may end another."""
        observation = self.rooms.trainer.observe(fence, self.view.stages)
        while (command := self.rooms.tamiyo.advance(self._state(training))) is not None:
            self._take(self.rooms.kasmina.advance(self._sent(command), fence, observation))

    def _reset(self, fence: int) -> None:
        if seeds := self.view.resetting:
            self._take(self.rooms.kasmina.reset(self.rooms.trainer.compare_with_unseeded(seeds), fence))

    def _germinate(self, fence: int, training: TrainingState) -> None:
        verdict = self.rooms.tamiyo.decide(self._state(training))
        if verdict.decision is not None:
            self.journal.write(Kind.DECISION, verdict.decision)
        if isinstance(verdict.outcome, Hold):
            self.tally.growth = self.tally.growth.held(verdict.outcome)
            self.journal.write(Kind.HOLD, verdict.outcome)
            self.progress.hold(verdict.outcome)
            return
        command = self._sent(verdict.outcome)
        received = self.rooms.kasmina.receive(command, fence)
        snapshot = self.rooms.trainer.snapshot()
        with self.tally.waiting():
            births = self.rooms.incubator.births(received.plans, received.weights, snapshot)
        self.tally.incubator_flops += received.flops
        changed = self.rooms.kasmina.carry_out(command.command_id, fence, births)
        self._take(changed)
        if changed.answer.order is not None:
            self.rooms.incubator.begin(changed.answer.order, changed.weights, snapshot)

    def _sent(self, command: Command) -> Command:
        self.journal.write(Kind.COMMAND, command)
        return command

    def _take(self, changed: Changed) -> None:
        """Journal what Kasmina answered, carry its plans out, and give Tamiyo its reports."""
        self.at.view, answer = changed.view, changed.answer
        for verdict in answer.gates:
            self.tally.growth = self.tally.growth.judged(verdict)
        self.journal.write_many([(Kind.GATE, report) for report in answer.gates])
        self.journal.write_many([(Kind.TRANSITION, step) for step in answer.transitions])
        if answer.order is not None:
            self.journal.write(Kind.INCUBATION_BEGUN, answer.order.model_copy(update={"plans": ()}))
        if answer.keep_twin:
            self.rooms.incubator.keep_twin()
        for plan in answer.plans:
            self.journal.write(Kind.PLAN_APPLIED, self.rooms.trainer.apply(plan, changed.weights))
        for report in answer.field_reports:
            self.store.append(report)
            self.journal.write(Kind.FIELD_REPORT, report)
            self.rooms.tamiyo.remember(report)
        self.progress.answer(answer)
