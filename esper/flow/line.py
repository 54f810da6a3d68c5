"""The loop of a run: train a round, hold the fence at its end, and repeat this up to the last fence.

The line calls its components through their ports only, so the same code runs in one process and on Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from esper import faults
from esper.archive.journal import Journal, RecordKind
from esper.errors import Drained
from esper.flow.checkpoints import Checkpoints
from esper.flow.crew import Components
from esper.flow.death_log import DeathLog
from esper.flow.emergency_watch import SignalWatch
from esper.flow.finishing import Ending, choose
from esper.flow.going_back import GoingBack, Phase
from esper.flow.growth import Growth
from esper.flow.position import Position
from esper.flow.progress import Progress
from esper.flow.stopping import Drain
from esper.flow.tally import Tally
from esper.leyline.stages import LIVE
from esper.leyline.state import RegistryView, TrainingState
from esper.tamiyo.field_reports import FieldReportStore
from esper.telemetry.context import continue_from, span, trace_id, traceparent
from esper.telemetry.metrics import gauge, timed


@dataclass
class Line:
    """Executes one run, fence by fence.

    Call order: `begin` at the start, and again after the run went back. Then, for each fence, call either `round`, or
    `train` and then `hold`.
    """

    components: Components
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
    """Trace id of the last round that began."""
    ending: Ending | None = None
    """Set if the run ends with the better of live host and twin."""

    def __post_init__(self) -> None:
        self.watch = SignalWatch(self.components.inbox, self.journal, self.at, self.progress)
        self.deaths = DeathLog(self.components.crew, self.journal)
        self.growth = Growth(self.components, self.journal, self.store, self.progress, self.at)
        self.back = GoingBack(self.components, self.journal, self.checkpoints, self.progress, self.deaths, self.at)

    def run(self) -> None:
        """Do all rounds from the last fence to the end of the run.

        Raises:
            Drained: a stop was requested. The run ends at a fence whose checkpoint is committed.
            EmergencyStop: a HALT was published.
        """
        self.begin()
        while self.passed < self.last:
            self.round()
        self.checkpoints.settle()
        self._hear(self.last + 1)  # these signals arrived after fence `last` was held

    def begin(self) -> None:
        """Hold fence 0, unless the run has passed it."""
        self.deaths.tell()
        if self.back.phase is Phase.STARTED:
            self._drained(0)
            faults.point("conductor.begin")
            self.back.keep_beginning()
            self.at.start = self.components.trainer.shard_means("test")
            with continue_from(self.back.recovery), span("esper round", role="conductor", fence=0):
                self.trace_id, self.back.round = trace_id(), traceparent()
                self.hold(0, self.components.trainer.untrained())
            self.back.enter(Phase.GOING_ON)

    def round(self) -> None:
        """Train one round, and hold the fence at its end. Raises: see `run`."""
        self._drained(self.passed)
        fence = self.passed + 1
        with (
            continue_from(self.back.recovery),
            timed("esper.round.duration"),
            span("esper round", role="conductor", fence=fence),
        ):
            self.trace_id, self.back.round = trace_id(), traceparent()
            self.hold(fence, self.train(fence))
        self.back.recovery = ""

    def train(self, fence: int) -> TrainingState:
        """Train the live host and its twin from the last fence to this fence. Call `hold` next, with the result.

        Raises:
            EsperError: the round failed. The run must go back to an earlier fence before the next call.
        """
        assert fence == self.passed + 1, f"fence {fence} does not follow fence {self.passed}"
        assert self.back.phase is Phase.GOING_ON, f"no round runs in phase {self.back.phase}"
        steps = self.fence_steps[fence] - self.fence_steps[fence - 1]
        self.progress.working(f"round {fence}: {steps} steps")
        self.at.finish = None  # a resume may make a run longer
        if self.view.has_twin:
            with self.tally.fence(), self.tally.waiting():
                self.components.incubator.advance_twin(self.fence_steps[fence])
        with self.tally.training(steps, self.view.step_flops):
            training = self.components.trainer.run_round(fence, self.fence_steps[fence])
        self.journal.write(RecordKind.ROUND_ENDED, training)
        return training

    def hold(self, fence: int, training: TrainingState) -> None:
        """Hold a fence: read signals, let the network grow, and store the state of the run if a checkpoint is due.

        If Tamiyo commands the run to go back, this fence is not passed, and `passed` is an earlier fence.

        Args:
            training: What `train` returned for this fence.

        Raises:
            EmergencyStop: a HALT was published.
            EsperError: a component failed. The run must go back to an earlier fence before the next call.
        """
        with self.tally.fence():
            self._hear(fence)
            self.at.view, self.at.checkpoints = self.components.kasmina.view(fence), self.checkpoints.fences
            back = self.growth.hold(fence, training) if self.growing else None
        if back is not None:
            self.back.obey(back, fence)
            return
        if self.ending is not None and fence == self.last:
            self._finish(fence, self.ending)
        gauge("esper.parameters", training.parameters)
        gauge("esper.seeds.live", sum(stage in LIVE for stage in self.view.stages.values()))
        self.progress.fence(self.at.round_state(training), self.tally)
        self._pass(fence)

    def _finish(self, fence: int, ending: Ending) -> None:
        """Choose the network of the run."""
        with self.tally.fence():
            self.at.finish = choose(self.components, self.view, fence, ending.most)
        self.tally.incubator_flops += ending.flops(self.view)
        self.journal.write(RecordKind.FINISHED, self.at.finish)

    def _hear(self, fence: int) -> None:
        """Restart the dead processes that can be restarted alone. Then read signals. Raises: EmergencyStop,
        ActorLost."""
        self.components.crew.mend()
        self.deaths.tell()
        self.watch.hear(fence, self.fence_steps[min(fence, self.last)])

    def _pass(self, fence: int) -> None:
        """Record the fence as passed, and store its state if a checkpoint is due or a stop was requested."""
        faults.point("conductor.fence", round=fence)
        self.at.fence = fence
        self.components.crew.passed(fence)
        self.deaths.time_first_step(self.components.trainer.first_step_at)
        if self.drain.requested or self.checkpoints.due(fence, self.last):
            self.back.store(fence)

    def _drained(self, fence: int) -> None:
        """If a stop was requested, store and commit the state of the last fence. Raises: Drained, EmergencyStop."""
        if self.drain.requested:
            if self.at.fence is not None and (self.back.memory is None or self.back.memory.fence != fence):
                self.back.store(fence)
            self.checkpoints.settle()
            if self.at.fence is not None:
                self.watch.hear(fence + 1, self.fence_steps[fence])  # a HALT in the queue comes before the stop
            raise Drained(fence)

    # -- the present state of the run -------------------------------------------------------------------------------

    @property
    def tally(self) -> Tally:
        """Counts and measured seconds of the run so far."""
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
        """Kasmina's present registry."""
        return self.at.registry
