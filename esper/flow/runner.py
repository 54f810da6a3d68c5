"""Begins, resumes and ends a run, in one process or on Ray. The rounds and fences of a run are in `line.py`.

When its journal is open, a run journals everything on which its results depend, and its end. If a run fails earlier,
its directory contains only `run.json`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry.trace import Span

from esper import faults
from esper.archive.history import Past, last_halt, level_history
from esper.archive.identity import Identity
from esper.archive.journal import FIRST_GENERATION, Entry, Journal, RecordKind
from esper.archive.run_directory import (
    RunDirectory,
    checkpoints_folder,
    emergency_folder,
    faults_file,
    reports_folder,
    telemetry_folder,
)
from esper.archive.summary import Summary, failure
from esper.config.joined import RunConfig
from esper.emergency.sinks import check_sinks
from esper.emergency.undelivered import undelivered
from esper.emergency.unread_requests import report_unread
from esper.faults import Firings, missed
from esper.flow.checkpoints import Checkpoints, FenceState
from esper.flow.command_key import command_key, without_key_file
from esper.flow.crew import Components
from esper.flow.finishing import Ending
from esper.flow.going_back import Cause
from esper.flow.identifying import check_same_policy, check_same_task, identify, measured_again
from esper.flow.launching import BringUp
from esper.flow.lengthening import checkpoints_to_go_on_from
from esper.flow.line import Line
from esper.flow.next_steps import resume_in_python
from esper.flow.progress import Progress
from esper.flow.run_metrics import RunMetrics, run_metrics
from esper.flow.stopping import Drain
from esper.flow.summarising import summarise, with_deaths
from esper.flow.takeover import take_over
from esper.flow.trial_restore import TrialRestore
from esper.ground.clock import Clock
from esper.ground.closing import noted_on
from esper.ground.hash_seed import hash_seed
from esper.ground.machine import cpu_type
from esper.leyline.ids import new_run_id
from esper.setup.assembly import RunKey
from esper.setup.survey import Survey
from esper.tamiyo.field_reports import FieldReportStore
from esper.telemetry.context import continue_from, span, trace_id, traceparent, use
from esper.telemetry.events import Severity, severe
from esper.telemetry.last_span import last_traceparent
from esper.telemetry.setup import Telemetry, check_environment
from esper.user_code.task_reference import Reference
from esper.user_code.their_code import any_of_their_code


@dataclass(frozen=True)
class Conductor:
    """Executes a run: brings up its components, reports its progress, and accepts requests to stop."""

    name: str
    """Name of the conductor's process in fault points."""
    bring_up: BringUp
    reference: Reference
    progress: Progress
    clock: Clock
    drain: Drain
    policy: str
    """Class and version of the policy of the run."""
    signals: tuple[Entry, ...] = ()
    """Signals of an earlier run, whose emergency levels are in force in this run at the same fences. They are not
    journaled again."""

    def begin(self, survey: Survey) -> Summary:
        """Claim a run directory and run from fence 0.

        Raises:
            ConfigError: the directory or the key file cannot be used; nothing was written.
            EsperError: the run failed; its directory has the journal and the checkpoints up to the failure.
        """
        secret = _check_surroundings(survey.config)
        wanted = Path(survey.config.run.dir) if survey.config.run.dir is not None else None
        with (
            _metrics_of(survey.config) as metrics,
            RunDirectory.create(wanted, self.clock.now()) as directory,
        ):
            run_id, now = new_run_id(), self.clock.now()
            identity = identify(survey, run_id, FIRST_GENERATION, self.reference, now, self.policy)
            return self._run(survey, directory.path, identity, None, secret, metrics)

    def resume(self, survey: Survey, directory: RunDirectory, past: Past) -> Summary:
        """Resume a run from its last committed checkpoint, in a new generation.

        If the run has no committed checkpoint, it begins again at fence 0.

        Raises:
            TaskError: the network or the data differ from those at the beginning of the run.
            ConfigError: another policy has decided for the run; or the run has a new length that it cannot have, see
                `checkpoints_to_go_on_from`. Nothing was written.
            RestoreImpossible: checkpoints were committed and none of them loads.
            EsperError: the run failed; its directory has the journal and the checkpoints up to the failure.
        """
        secret = _check_surroundings(survey.config)
        check_same_policy(self.policy, past.identity)
        check_same_task(survey, past.identity)
        past = replace(past, commits=checkpoints_to_go_on_from(survey, past))
        identity = past.identity.model_copy(
            update={
                "generation": past.generation + 1,
                "config": without_key_file(survey.config),
                "total_steps": survey.total_steps,
                "fence_steps": survey.fence_steps,
                "cpu": cpu_type(),
                "policy": self.policy,
                **measured_again(survey, past.identity),
            }
        )
        with _metrics_of(survey.config) as metrics:
            return self._run(survey, directory.path, identity, past, secret, metrics)

    def _run(
        self,
        survey: Survey,
        path: Path,
        identity: Identity,
        past: Past | None,
        secret: bytes,
        metrics: RunMetrics,
    ) -> Summary:
        config, committed = survey.config, past.commits if past is not None else ()
        key = RunKey(identity.run_id, identity.generation, secret)
        if past is None:
            identity.save(path)  # written first: with it the directory has a run that can be resumed
        self.progress.started(survey, path)  # this comes before anything that can fail, so that a failure names the run
        with ExitStack() as stack:
            telemetry = stack.enter_context(
                Telemetry.start(telemetry_folder(path) if config.telemetry.enabled else None, "conductor", key.run_id)
            )
            stack.enter_context(use(telemetry))
            metrics.add(telemetry.metrics.snapshot)
            if telemetry.directory is not None:
                metrics.tally(telemetry.directory)
            stack.enter_context(metrics.told(path))
            if metrics.url is not None:
                self.progress.found(f"metrics for Prometheus: {metrics.url}")
            stack.enter_context(faults.armed(config.faults, self.name, faults_file(path, key.generation)))
            journal = stack.enter_context(Journal(path, key.generation))
            faults.point("conductor.open")
            store = stack.enter_context(FieldReportStore(reports_folder(path)))
            checkpoints = stack.enter_context(
                Checkpoints(checkpoints_folder(path), journal, config.checkpoint, committed, run_id=key.run_id)
            )
            opened = OpenRun(self, survey, path, key, identity, journal, store, checkpoints, metrics, past)
            if past is None:
                journal.write(RecordKind.RUN_STARTED, identity)
            return opened.run()


@dataclass
class OpenRun:
    """A run whose directory and journal are open. Every end of the run is journaled."""

    conductor: Conductor
    survey: Survey
    path: Path
    key: RunKey
    identity: Identity
    journal: Journal
    store: FieldReportStore
    checkpoints: Checkpoints
    metrics: RunMetrics
    past: Past | None
    """Valid history of a run that is resumed. None: the run is new."""
    saved: FenceState | None = None
    """State to resume from. None: the run is new, or the state was restored and its memory is freed."""

    def run(self) -> Summary:
        """Bring the components up, run the line, and journal how the run ended."""
        clock, progress, drain = self.conductor.clock, self.conductor.progress, self.conductor.drain
        began, line, trace, above = clock.monotonic(), None, "", ""
        stands = self.past.fence if self.past is not None else 0
        try:
            if self.past is not None:
                with self._resuming():
                    trace, above = trace_id(), traceparent()
                    self._take_over(self.past)
                stands = (self.saved.fence or 0) if self.saved is not None else 0
            with any_of_their_code, ExitStack() as up:
                with drain.starting(stands), continue_from(above), span("esper start", role="conductor"):
                    trace = trace_id()
                    faults.point("conductor.start")
                    components = up.enter_context(self.conductor.bring_up(self.survey, self.key, self.path))
                    self.metrics.add(components.crew.metrics)
                    line = self._line(components, trace)
                    line.back.round = traceparent()
                ended = self._to_the_end(line, lambda: clock.monotonic() - began)
            summary = ended(**self._faults())
            summary.save(self.path)
            self._tell_undelivered(finished=True)
        except BaseException as error:
            self.checkpoints.close()  # the components are down now, so no COMMIT can follow the record below
            if line is not None:
                stands, trace = stands if line.at.fence is None else line.at.fence, line.trace_id
            with noted_on(error, "journaling that the run failed"):
                told = {**failure(error), "trace_id": trace, "fence": stands}
                self.journal.write(RecordKind.RUN_FAILED, **told, **self._faults(), counters=self._counters())
            with noted_on(error, "reading the queue of emergency signals"):
                self._tell_undelivered(finished=False)
            if isinstance(error, KeyboardInterrupt):  # the command line has a line of its own; Python prints the note
                error.add_note(f"the fences are saved; to resume the run: {resume_in_python(self.path)}")
            raise
        self.journal.write(RecordKind.RUN_ENDED, **summary.as_json(), counters=self._counters())
        progress.ended(summary)
        return summary

    def _counters(self) -> dict[str, int]:
        """Return the counters of all processes that are not 0, each summed over its labels."""
        found = self.metrics.now()
        totals = {name: found.total(name) for name in sorted(found.counters)}
        return {name: total for name, total in totals.items() if total}

    def _resuming(self) -> AbstractContextManager[Span]:
        """Open the span of a resume. It is linked to the trace in which the run stopped."""
        last = last_traceparent(telemetry_folder(self.path))
        generation, before = self.key.generation, last.split("-")[1] if last else ""
        return span("esper resume", role="conductor", links_to=[last], generation=generation, continues_from=before)

    def _tell_undelivered(self, *, finished: bool) -> None:
        """Report the signals that sinks have not confirmed, and the requests that no process has read. Call it when the
        components are down.
        """
        folder = emergency_folder(self.path)
        for line in (*report_unread(folder), *undelivered(folder, finished=finished)):
            self.conductor.progress.found(line)

    def _take_over(self, past: Past) -> None:
        """Take over a run that is resumed."""
        if self.identity.cpu != past.identity.cpu:
            severe("other_cpu", Severity.WARNING, began_on=past.identity.cpu, goes_on_on=self.identity.cpu)
        if past.identity.orders_texts_otherwise:
            severe("other_hash_seed", Severity.WARNING, began_with=past.identity.hash_seed, here=hash_seed())
        trial = TrialRestore(self.survey, self.key, past)
        taken = take_over(self.path, past, self.journal, self.checkpoints, self.identity, trial)
        self.saved = taken.saved
        halt = last_halt(past.entries)
        if halt is not None:
            severe("emergency_halt_cleared", Severity.WARNING, signal_id=halt.body["signal_id"])
            told = f"HALT cleared: signal {halt.body['signal_id']} stopped the run ({halt.body['reason']})"
            self.conductor.progress.found(told)
        for message in taken.told:
            self.conductor.progress.found(message)

    def _to_the_end(self, line: Line, wall_s: Callable[[], float]) -> partial[Summary]:
        """Run the line to its end, with a restart after each death. After an error, commit the save in flight first."""

        def work() -> partial[Summary]:
            with line.watch.reporting_halts(lambda: line.back.round):
                if self.saved is not None:
                    with continue_from(line.back.round):
                        line.back.go_back(self._released(), Cause.RESUME)
                with any_of_their_code:
                    line.run()
                ended = self._ended(line, wall_s())
            line.watch.hear_out()
            return with_deaths(ended, line, self.past)

        try:
            return line.back.outlive(work)
        except Exception as stop:
            for last, doing in (
                (self.checkpoints.settle, "committing the checkpoint in flight"),
                (line.deaths.tell, "journaling deaths"),
                (line.watch.hear_out, "journaling what the emergency queue holds"),
            ):
                with noted_on(stop, doing), continue_from(line.back.round):  # so that deaths are told in its trace
                    last()
            raise

    def _released(self) -> FenceState:
        assert self.saved is not None, "asked for once"
        saved, self.saved = self.saved, None
        return saved

    def _ended(self, line: Line, wall_s: float) -> partial[Summary]:
        """Return the summary, while the components are up. Deaths and faults are added later."""
        faults.point("conductor.end")
        fallbacks = self.metrics.now().total("esper.fallbacks")
        return summarise(line, self.survey, self.path, self.identity.task, self.past, fallbacks, wall_s)

    def _faults(self) -> dict[str, Any]:
        """Journal the faults that fired, and report each that fired less often than asked.

        Returns:
            `fault_fired`, which is True if all armed faults fired, and `faults_missed`, which has a line for each fault
            that fired less often than asked. {} if no fault was armed.
        """
        armed = self.survey.config.faults
        if not armed:
            return {}
        fired = Firings(faults_file(self.path, self.key.generation)).all()
        self.journal.write_many([(RecordKind.FAULT_FIRED, firing) for firing in fired])
        lines = missed(armed, fired)
        for line in lines:
            self.conductor.progress.found(line)
        return {
            "fault_fired": {firing.fault_index for firing in fired} == set(range(len(armed))),
            "faults_missed": list(lines),
        }

    def _line(self, components: Components, trace: str) -> Line:
        line = Line(
            components,
            self.journal,
            self.store,
            self.checkpoints,
            self.survey.fence_steps,
            self.survey.config.growth.enabled,
            self.conductor.progress,
            self.conductor.drain,
            trace_id=trace,
            ending=_ending(self.survey),
        )
        calm_fences = self.survey.config.emergency.calm_fences
        line.at.levels = level_history(
            self.past.entries if self.past is not None else self.conductor.signals, calm_fences
        )
        if self.past is not None:
            line.tally.rollbacks = self.past.rollbacks
        return line


def _ending(survey: Survey) -> Ending | None:
    """Return the sizes with which a run chooses its network at its end. None: it does not choose."""
    growth, data = survey.config.growth, survey.data
    if not (growth.enabled and growth.finish == "better"):
        return None
    most = growth.finish_samples
    return Ending(data.count("pick", most) + data.count("gate", most), most, data.batch_size, survey.host_flops)


def _metrics_of(config: RunConfig) -> AbstractContextManager[RunMetrics]:
    """Serve the metrics on the port of the config. If it has none, serve them where the OTEL_* variables ask for it.

    Raises:
        ConfigError: the port for Prometheus cannot be used. Nothing was started.
    """
    host, port, asked = config.telemetry.prometheus_host, config.telemetry.prometheus_port, check_environment()
    return run_metrics(*(asked.prometheus if port is None and asked.prometheus is not None else (host, port)))


def _check_surroundings(config: RunConfig) -> bytes:
    """Check the inputs of a run outside its config: environment variables, the secrets of the sinks, and the key of
    commands.

    Returns:
        The key.

    Raises:
        ConfigError: one of these inputs cannot be used.
    """
    check_environment()
    check_sinks(config.emergency.sinks, os.environ)
    return command_key(config)
