"""One run in one process, as one readable page: the line from a measured round to the next decision.

`Line` is the line itself and knows its rooms only by what they answer; `run` brings up all of them in this process.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from esper.clock import Clock, SystemClock
from esper.config import RunConfig
from esper.journal import Journal, Kind
from esper.kasmina.facts import RunFacts
from esper.kasmina.incubation import Incubator
from esper.kasmina.manager import SeedManager
from esper.leyline.commands import Command
from esper.leyline.decisions import Hold
from esper.leyline.ids import new_run_id
from esper.leyline.incubation import Answer
from esper.leyline.ports import Fork, Policy
from esper.leyline.state import TrainingState
from esper.progress import Progress, Quiet
from esper.prospect import Prospect, survey
from esper.references import Reference
from esper.run_directory import RunDirectory, journal_file, reports_folder, telemetry_folder
from esper.summary import Result, Tally, failure, fate, identify
from esper.tamiyo.commands import CommandBuilder
from esper.tamiyo.eligibility import GrowthWindow
from esper.tamiyo.field_reports import FieldReportStore
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.service import Tamiyo
from esper.task import Task
from esper.telemetry.context import span, trace_id, use
from esper.telemetry.setup import Telemetry
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.trainer import Trainer

GENERATION = 1
"""A run in one process is never restarted; generations are raised by whoever restarts it."""


@dataclass
class Line:
    """The line of one run, fence by fence."""

    trainer: Trainer
    tamiyo: Tamiyo
    kasmina: SeedManager
    incubator: Incubator
    journal: Journal
    store: FieldReportStore
    fence_steps: tuple[int, ...]
    growing: bool
    progress: Progress
    tally: Tally
    fence: int = 0
    trace_id: str = ""
    """Of the round that runs, or ran last."""

    def run(self) -> None:
        """All rounds from fence 0 to the end."""
        self._hold_fence(0, self.trainer.untrained())
        for fence in range(1, len(self.fence_steps)):
            with span("esper round", role="conductor", fence=fence):
                self.trace_id = trace_id()
                steps = self.fence_steps[fence] - self.fence_steps[fence - 1]
                with self.tally.training(steps, self.kasmina.step_flops()):
                    training = self.trainer.run_round(fence, self.fence_steps[fence])
                self.journal.write(Kind.ROUND_ENDED, training)
                self._hold_fence(fence, training)
                self.fence = fence

    def _hold_fence(self, fence: int, training: TrainingState) -> None:
        """Between two rounds: conclude, compare, advance what is due, reset what was culled, germinate anew."""
        with self.tally.fence():
            if self.growing:
                self._conclude(fence)
                self._compare_with_twin(fence)
                self._advance(fence, training)
                self._reset(fence)
                self._germinate(fence, training)
        self.progress.fence(self.kasmina.observe(fence, training), self.tally)

    def _conclude(self, fence: int) -> None:
        if not self.kasmina.due(fence):
            return
        with self.tally.waiting():
            result = self.incubator.collect()
        self.tally.incubator_steps += result.fork_steps
        self.tally.incubator_flops += result.flops
        self.journal.write(Kind.INCUBATION_ENDED, result)
        self._take(self.kasmina.conclude(result, fence))

    def _compare_with_twin(self, fence: int) -> None:
        if self.kasmina.twin_kept:
            with self.tally.waiting():
                self.incubator.advance_twin(self.fence_steps[fence])
        if self.kasmina.compares_with_twin():
            live = self.trainer.sample_losses("gate", fence)
            twin = self.incubator.twin.sample_losses("gate", fence)
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
        verdict = self.tamiyo.decide(self.kasmina.observe(fence, training))
        if verdict.decision is not None:
            self.journal.write(Kind.DECISION, verdict.decision)
        if isinstance(verdict.outcome, Hold):
            self.journal.write(Kind.HOLD, verdict.outcome)
            self.progress.hold(verdict.outcome)
            return
        command = self._sent(verdict.outcome)
        plans = self.kasmina.receive(command, fence)
        snapshot = self.trainer.snapshot()
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
) -> Result:
    """Train and grow a task's network in this process, without Ray.

    Args:
        reference: Where the task comes from, for `run.json`; None: it cannot be found again from there.
        policy: Decides instead of the config's own.
        progress: Shown to people while it runs; by default nothing is.

    Raises:
        ConfigError: an input is wrong; nothing was written.
        EsperError: the run failed; its directory keeps the journal up to there.
    """
    config, clock, progress = config or RunConfig(), clock or SystemClock(), progress or Quiet()
    with torch_threads(config.run.threads):
        prospect = survey(task, config)
        path = Path(config.run.dir) if config.run.dir is not None else None
        with RunDirectory.create(path, clock.now()) as directory:
            return _run_in(directory.path, prospect, reference or Reference(), policy, progress, clock)


def _run_in(
    path: Path, prospect: Prospect, reference: Reference, policy: Policy | None, progress: Progress, clock: Clock
) -> Result:
    config, run_id = prospect.config, new_run_id()
    folder = telemetry_folder(path) if config.telemetry.enabled else None
    with (
        Telemetry.start(folder, "conductor", run_id) as telemetry,
        use(telemetry),
        Journal(journal_file(path, GENERATION)) as journal,
        closing(FieldReportStore(reports_folder(path))) as store,
    ):
        identity = identify(prospect, run_id, GENERATION, reference, clock.now())
        identity.save(path)
        journal.write(Kind.RUN_STARTED, identity)
        progress.started(prospect, path)
        line = build_line(prospect, run_id, policy, journal, store, progress, clock)
        try:
            began = clock.monotonic()
            start = line.trainer.shard_means("test")
            line.run()
            result = _result(line, prospect, path, reference, start, telemetry, clock.monotonic() - began)
        except BaseException as error:
            journal.write(Kind.RUN_FAILED, **failure(error), trace_id=line.trace_id, fence=line.fence)
            raise
        result.save(path)
        journal.write(Kind.RUN_ENDED, weights_sha256=result.weights_sha256, test_loss=result.test_loss)
        progress.ended(result)
        return result


def build_line(
    prospect: Prospect,
    run_id: str,
    policy: Policy | None,
    journal: Journal,
    store: FieldReportStore,
    progress: Progress,
    clock: Clock,
) -> Line:
    """All rooms of a run, in this process."""
    config, key = prospect.config, secrets.token_bytes(32)
    facts = RunFacts(
        run_id=run_id,
        generation=GENERATION,
        run_seed=config.run.seed,
        batch_size=prospect.data.batch_size,
        fence_steps=prospect.fence_steps,
        host_parameters=prospect.host_parameters,
        host_bytes=prospect.host_bytes,
        host_flops=prospect.host_flops,
    )
    growth, specs = config.growth, prospect.specs
    kasmina = SeedManager(facts, growth, specs, prospect.options, prospect.blueprints, key=key, clock=clock)

    def fork(snapshot: HostSnapshot) -> Fork:
        trainer = prospect.trainer(run_id, GENERATION)
        trainer.become(snapshot)
        return trainer

    tamiyo = Tamiyo(
        policy or HeuristicPolicy(growth.candidates, growth.replicas),
        CommandBuilder(key, clock, growth.ramp_steps),
        GrowthWindow(growth.first_fence, prospect.fences_to_fossil, growth.stack),
        config.risk,
        host_flops=prospect.host_flops,
        deadline_s=config.policy.deadline_s,
        clock=clock,
    )
    return Line(
        trainer=prospect.trainer(run_id, GENERATION),
        tamiyo=tamiyo,
        kasmina=kasmina,
        incubator=Incubator(fork, {spec.path: spec for spec in specs}, prospect.blueprints),
        journal=journal,
        store=store,
        fence_steps=prospect.fence_steps,
        growing=growth.enabled,
        progress=progress,
        tally=Tally(),
    )


def _result(
    line: Line,
    prospect: Prospect,
    path: Path,
    reference: Reference,
    start: dict[str, float],
    telemetry: Telemetry,
    wall_s: float,
) -> Result:
    trainer, tally, config = line.trainer, line.tally, prospect.config
    twin = line.incubator.twin if line.kasmina.twin_kept else None
    end, state = trainer.shard_means("test"), line.kasmina.observe(len(prospect.fence_steps) - 1, trainer.untrained())
    assert tally.steps_per_s is not None, "a run has at least one round"
    return Result(
        run_dir=str(path),
        task=reference.text,
        seed=config.run.seed,
        threads=config.run.threads,
        workers=1,
        rounds=len(prospect.fence_steps) - 1,
        steps=tally.steps,
        test_loss=end["loss"],
        valid_loss=trainer.shard_means("valid")["loss"],
        start_test_loss=start["loss"],
        twin_test_loss=twin.shard_means("test")["loss"] if twin is not None else None,
        test_metrics={name: value for name, value in end.items() if name != "loss"},
        params_start=prospect.host_parameters,
        params_end=trainer.parameter_count(),
        seeds=tuple(fate(seed) for seed in state.seeds),
        trainer_gflops=tally.trainer_flops / 1e9,
        incubator_gflops=tally.incubator_flops / 1e9,
        twin_gflops=line.incubator.twin_steps * prospect.host_flops / 1e9,
        steps_per_s=tally.steps_per_s,
        fence_wait_s=tally.fence_wait_s,
        wall_s=wall_s,
        restarts=0,  # nothing in one process restarts anything, or rolls it back
        rollbacks=0,
        fallbacks=telemetry.counters.total("esper.fallbacks"),
        weights_sha256=trainer.weights_sha256(),
        twin_weights_sha256=twin.weights_sha256() if twin is not None else None,
        trace_id=line.trace_id,
        network=trainer.host,
    )
