"""One run as one readable page: the line from a measured round to the next decision.

`Line` is the line itself and knows its rooms only by what they answer, so that it is the same in one process and
across many. `run` brings up all of them in this process; `conduct` is what every way of running shares.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from esper.clock import Clock, SystemClock
from esper.config import RunConfig
from esper.errors import ConfigError, Drained
from esper.faults import Firings
from esper.journal import Journal, Kind
from esper.leyline.commands import Command
from esper.leyline.decisions import Hold
from esper.leyline.ids import new_run_id
from esper.leyline.incubation import Answer
from esper.leyline.ports import Decider, LiveHost, Nursery, Policy, Registrar
from esper.leyline.signals import EmergencySignal, Level
from esper.leyline.state import TrainingState
from esper.progress import Progress, Quiet
from esper.prospect import Prospect, survey
from esper.references import Reference
from esper.rooms import RunKey, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.run_directory import RunDirectory, faults_file, journal_file, reports_folder, telemetry_folder
from esper.summary import Result, Tally, failure, fate, identify
from esper.tamiyo.field_reports import FieldReportStore
from esper.task import Task
from esper.telemetry.context import span, trace_id, use
from esper.telemetry.setup import Telemetry

GENERATION = 1
"""A run begins with it; whoever restarts a part of one raises it."""


@dataclass
class Rooms:
    """The four that the line goes through: the objects themselves, or handles of their processes."""

    trainer: LiveHost
    tamiyo: Decider
    kasmina: Registrar
    incubator: Nursery
    counted: Callable[[str], int]
    """Total of a counter in every process but the conductor's own."""
    signals: Callable[[], tuple[EmergencySignal, ...]]
    """Emergency signals that came since the last call."""


@dataclass
class Drain:
    """Somebody's wish that the run end at its next fence; while it starts there is none to wait for."""

    requested: bool = False
    _interruptible: bool = False

    def ask(self) -> None:
        """Wish it, from a signal handler say.

        Raises:
            KeyboardInterrupt: the run is starting, in this thread; `starting` makes `Drained` of it.
        """
        first, self.requested = not self.requested, True
        if first and self._interruptible:
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
            if not self.requested:
                raise
            raise Drained(0) from interrupt
        finally:
            self._interruptible = False


@dataclass
class Line:
    """The line of one run, fence by fence."""

    rooms: Rooms
    journal: Journal
    store: FieldReportStore
    fence_steps: tuple[int, ...]
    growing: bool
    progress: Progress
    drain: Drain
    tally: Tally = field(default_factory=Tally)
    level: Level | None = None
    fence: int = 0
    trace_id: str = ""
    """Of the round that runs, or ran last."""

    def __post_init__(self) -> None:
        self.trainer, self.tamiyo = self.rooms.trainer, self.rooms.tamiyo
        self.kasmina, self.incubator = self.rooms.kasmina, self.rooms.incubator

    def run(self) -> None:
        """All rounds from fence 0 to the end.

        Raises:
            Drained: that was asked for; the run ends at a fence.
        """
        if not self.drain.requested:
            self._hold_fence(0, self.trainer.untrained())
        for fence in range(1, len(self.fence_steps)):
            if self.drain.requested:
                raise Drained(self.fence)
            with span("esper round", role="conductor", fence=fence):
                self.trace_id = trace_id()
                training = self._train(fence)
                self._hold_fence(fence, training)
            self.fence = fence

    def _train(self, fence: int) -> TrainingState:
        """One round of the live host, and of its twin beside it."""
        steps = self.fence_steps[fence] - self.fence_steps[fence - 1]
        self.progress.working(f"round {fence}: {steps} steps")
        if self.kasmina.has_twin():
            with self.tally.waiting():
                self.incubator.advance_twin(self.fence_steps[fence])
        with self.tally.training(steps, self.kasmina.step_flops()):
            training = self.trainer.run_round(fence, self.fence_steps[fence])
        self.journal.write(Kind.ROUND_ENDED, training)
        return training

    def _hold_fence(self, fence: int, training: TrainingState) -> None:
        """Between two rounds: conclude, compare, advance what is due, reset what was culled, germinate anew."""
        with self.tally.fence():
            self._hear()
            if self.growing:
                self._conclude(fence)
                self._compare_with_twin(fence)
                self._advance(fence, training)
                self._reset(fence)
                self._germinate(fence, training)
        self.progress.fence(self.kasmina.observe(fence, training), self.tally)

    def _hear(self) -> None:
        """Take in emergency signals: the highest level so far holds for the rest of the run."""
        for signal in self.rooms.signals():
            self.journal.write(Kind.SIGNAL, signal)
            self.level = max(self.level or signal.level, signal.level)

    def _conclude(self, fence: int) -> None:
        if not self.kasmina.due(fence):
            return
        self.progress.working(f"round {fence}: incubating")
        with self.tally.waiting():
            result = self.incubator.collect()
        self.tally.incubator_steps += result.fork_steps
        self.tally.incubator_flops += result.flops
        self.journal.write(Kind.INCUBATION_ENDED, result)
        self._take(self.kasmina.conclude(result, fence))

    def _compare_with_twin(self, fence: int) -> None:
        if self.kasmina.compares_with_twin():
            live = self.trainer.sample_losses("gate", fence)
            with self.tally.waiting():
                twin = self.incubator.twin_losses(fence)
            self.tally.incubator_flops += self.kasmina.comparison_flops(live)
            self.journal.write(Kind.TWIN_COMPARED, self.kasmina.compare(live, twin))

    def _advance(self, fence: int, training: TrainingState) -> None:
        """Have the next gate of every due seed judged, one after the other: what one does may end another."""
        observation = self.trainer.observe(fence, self.kasmina.stages())
        while (command := self.tamiyo.advance(self.kasmina.observe(fence, training))) is not None:
            self.kasmina.receive(self._sent(command), fence)
            self._take(self.kasmina.carry_out(command.command_id, fence, (), observation))

    def _reset(self, fence: int) -> None:
        seeds = self.kasmina.resetting(fence)
        if seeds:
            self._take(self.kasmina.reset(self.trainer.compare_with_unseeded(seeds), fence))

    def _germinate(self, fence: int, training: TrainingState) -> None:
        state = self.kasmina.observe(fence, training).model_copy(update={"level": self.level})
        verdict = self.tamiyo.decide(state)
        if verdict.decision is not None:
            self.journal.write(Kind.DECISION, verdict.decision)
        if isinstance(verdict.outcome, Hold):
            self.journal.write(Kind.HOLD, verdict.outcome)
            self.progress.hold(verdict.outcome)
            return
        command = self._sent(verdict.outcome)
        plans = self.kasmina.receive(command, fence)
        snapshot = self.trainer.snapshot()
        with self.tally.waiting():
            births = self.incubator.births(plans, snapshot)
        self.tally.incubator_flops += self.kasmina.birth_flops(plans)
        answer = self.kasmina.carry_out(command.command_id, fence, births, None)
        self._take(answer)
        if answer.order is not None:
            self.incubator.begin(answer.order, snapshot)

    def _sent(self, command: Command) -> Command:
        self.journal.write(Kind.COMMAND, command)
        return command

    def _take(self, answer: Answer) -> None:
        """Journal what Kasmina answered, carry its plans out, and let Tamiyo learn of it."""
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


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with so many torch threads; afterwards the process has the number it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(
    task: Task,
    config: RunConfig | None = None,
    *,
    reference: Reference | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
    drain: Drain | None = None,
) -> Result:
    """Train and grow a task's network in this process, without Ray.

    Args:
        reference: Where the task comes from, for `run.json`; None: it cannot be found again from there.
        policy: Decides instead of the config's own.
        progress: Shown to people while it runs; by default nothing is.
        drain: Set its `requested`, from a signal handler say, and the run ends at the next fence.

    Raises:
        ConfigError: an input is wrong; nothing was written.
        Drained: `drain` asked for it.
        EsperError: the run failed; its directory keeps the journal up to there.
    """
    clock, config = clock or SystemClock(), config or RunConfig()
    if config.faults:
        raise ConfigError("faults", len(config.faults), "they break actors, and this is one process; run on Ray")

    def here(prospect: Prospect, key: RunKey, path: Path) -> AbstractContextManager[Rooms]:
        del path
        rooms = Rooms(
            trainer=(trainer := make_trainer(prospect, key)),
            tamiyo=make_tamiyo(prospect, key, clock, policy),
            kasmina=make_kasmina(prospect, key, clock),
            incubator=make_incubator(prospect, key),
            counted=lambda _: 0,
            signals=tuple,
        )
        networks.append(trainer.host)
        return nullcontext(rooms)

    networks: list[torch.nn.Module] = []
    drain = drain or Drain()
    with torch_threads(config.run.threads):
        with drain.starting():
            prospect = survey(task, config)
        result = conduct(prospect, here, reference or Reference(), progress or Quiet(), clock, drain)
    return result.model_copy(update={"network": networks[0]})


BringUp = Callable[[Prospect, RunKey, Path], AbstractContextManager[Rooms]]
"""(prospect, key, run directory) -> the rooms, up for as long as the context lasts."""


def conduct(
    prospect: Prospect, bring_up: BringUp, reference: Reference, progress: Progress, clock: Clock, drain: Drain
) -> Result:
    """Claim a run directory, bring the rooms up, run the line, and leave a record of whatever happened.

    Raises:
        ConfigError: the directory cannot be used; nothing was written.
        EsperError: the run failed; its directory keeps the journal up to there.
    """
    config = prospect.config
    wanted = Path(config.run.dir) if config.run.dir is not None else None
    key = RunKey(new_run_id(), GENERATION, secrets.token_bytes(32))
    with RunDirectory.create(wanted, clock.now()) as directory:
        path = directory.path
        folder = telemetry_folder(path) if config.telemetry.enabled else None
        with (
            Telemetry.start(folder, "conductor", key.run_id) as telemetry,
            use(telemetry),
            Journal(journal_file(path, key.generation)) as journal,
            closing(FieldReportStore(reports_folder(path))) as store,
        ):
            identity = identify(prospect, key.run_id, key.generation, reference, clock.now())
            identity.save(path)
            journal.write(Kind.RUN_STARTED, identity)
            record = Record(prospect, path, key, reference, journal, store, telemetry, progress, clock, drain)
            return record.run(bring_up)


@dataclass(frozen=True)
class Record:
    """A run whose directory is open: everything that happens from here on is in its journal."""

    prospect: Prospect
    path: Path
    key: RunKey
    reference: Reference
    journal: Journal
    store: FieldReportStore
    telemetry: Telemetry
    progress: Progress
    clock: Clock
    drain: Drain

    def run(self, bring_up: BringUp) -> Result:
        """Bring the rooms up, run the line, and write down how it ended."""
        began, line, trace = self.clock.monotonic(), None, ""
        self.progress.started(self.prospect, self.path)
        try:
            with ExitStack() as up:
                with self.drain.starting(), span("esper start", role="conductor"):
                    trace = trace_id()
                    rooms = up.enter_context(bring_up(self.prospect, self.key, self.path))
                line = self._line(rooms, trace)
                start = line.trainer.shard_means("test")
                line.run()
                fallbacks = self.telemetry.counters.total("esper.fallbacks") + rooms.counted("esper.fallbacks")
                wall_s = self.clock.monotonic() - began
                result = summarise(line, self.prospect, self.path, self.reference.text, start, fallbacks, wall_s)
            result = result.model_copy(update=self._faults())
            result.save(self.path)
        except BaseException as error:
            fence, trace = (line.fence, line.trace_id) if line is not None else (0, trace)
            self.journal.write(Kind.RUN_FAILED, **failure(error), trace_id=trace, fence=fence, **self._faults())
            raise
        self.journal.write(Kind.RUN_ENDED, weights_sha256=result.weights_sha256, test_loss=result.test_loss)
        self.progress.ended(result)
        return result

    def _faults(self) -> dict[str, bool]:
        """Journal what was broken on purpose; whether all that was armed has fired, if anything was."""
        armed = self.prospect.config.faults
        if not armed:
            return {}
        fired = Firings(faults_file(self.path)).all()
        self.journal.write_many([(Kind.FAULT_FIRED, firing) for firing in fired])
        return {"fault_fired": {firing.fault_index for firing in fired} == set(range(len(armed)))}

    def _line(self, rooms: Rooms, trace: str) -> Line:
        steps, growing = self.prospect.fence_steps, self.prospect.config.growth.enabled
        return Line(rooms, self.journal, self.store, steps, growing, self.progress, self.drain, trace_id=trace)


def summarise(
    line: Line, prospect: Prospect, path: Path, task: str, start: dict[str, float], fallbacks: int, wall_s: float
) -> Result:
    """What a run that reached its end came to."""
    trainer, tally, config = line.trainer, line.tally, prospect.config
    twin = line.incubator.twin_report() if line.kasmina.has_twin() else None
    end, state = trainer.shard_means("test"), line.kasmina.observe(len(prospect.fence_steps) - 1, trainer.untrained())
    assert tally.steps_per_s is not None, "a run has at least one round"
    return Result(
        run_dir=str(path),
        task=task,
        seed=config.run.seed,
        threads=config.run.threads,
        workers=1,
        rounds=len(prospect.fence_steps) - 1,
        steps=tally.steps,
        test_loss=end["loss"],
        valid_loss=trainer.shard_means("valid")["loss"],
        start_test_loss=start["loss"],
        twin_test_loss=twin.test_loss if twin is not None else None,
        test_metrics={name: value for name, value in end.items() if name != "loss"},
        params_start=prospect.host_parameters,
        params_end=trainer.parameter_count(),
        seeds=tuple(fate(seed) for seed in state.seeds),
        trainer_gflops=tally.trainer_flops / 1e9,
        incubator_gflops=tally.incubator_flops / 1e9,
        twin_gflops=twin.steps * prospect.host_flops / 1e9 if twin is not None else 0.0,
        steps_per_s=tally.steps_per_s,
        fence_wait_s=tally.fence_wait_s,
        wall_s=wall_s,
        restarts=0,  # nothing restarts anything yet, or rolls it back: a failure ends the run
        rollbacks=0,
        fallbacks=fallbacks,
        weights_sha256=trainer.weights_sha256(),
        twin_weights_sha256=twin.weights_sha256 if twin is not None else None,
        trace_id=line.trace_id,
    )
