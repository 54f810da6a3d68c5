"""`esper.run` and `esper.resume`: from a task and a config to a result, in this process or on Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper import faults
from esper.archive.journal import Entry
from esper.archive.resuming import Ended, resumed
from esper.archive.summary import Summary
from esper.config.joined import RunConfig
from esper.errors import ConfigError
from esper.export.loading import load
from esper.flow.in_process import InProcessLauncher
from esper.flow.late_delivery import deliver_the_rest
from esper.flow.launching import Launcher
from esper.flow.one_run import only_run
from esper.flow.places import InProcess, OnRay
from esper.flow.progress import Progress, Quiet
from esper.flow.result import Result
from esper.flow.runner import Conductor
from esper.flow.stopping import Drain
from esper.ground.arguments import check_methods, check_type, path_of
from esper.ground.workplace import fixed, from_here
from esper.leyline.ports import Policy
from esper.setup.survey import Survey, survey_of
from esper.task import Task
from esper.tolaria.compiling import announced
from esper.user_code.plugins import launcher
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import Reference, check_reference, given_task

HERE = InProcess()


@from_here()
def run(
    task: Task,
    config: RunConfig | None = None,
    *,
    on: InProcess | OnRay = HERE,
    reference: Reference | str | None = None,
    progress: Progress | None = None,
    drain: Drain | None = None,
) -> Result:
    """Train a task's network and let it grow.

    ```python
    result = esper.run(task, esper.RunConfig(run={"epochs": 3}), on=esper.OnRay())
    print(result.test_loss, result.network)
    ```

    Args:
        config: Settings of the run. None: all defaults. Its `run.dir` must be absent or empty; by default it is a new
            directory under `runs/`.
        on: The place of the run, `esper.InProcess()` or `esper.OnRay()`. Both give the same bits.
        reference: The place of the task's code, `"file.py:name"` or `"module:name"`, as on the command line. It is
            loaded once, to compare its settings with those of `task`. It is stored in `run.json`, and each actor loads
            the task from it. None: later calls and commands need the task as an argument (`task=`, `--task`), and on
            Ray the task must be picklable.
        progress: An `esper.Progress`, which receives the progress of the run, to show it to people. By default nothing
            is shown.
        drain: An `esper.Drain`. Its method `ask`, called in a signal handler for example, ends the run at its next
            fence.

    Returns:
        The result. On Ray its network is loaded from the last checkpoint, on the CPU, after all actors have ended.

    Raises:
        ConfigError: an input is wrong; nothing was written. The error is a TaskError if the task is wrong.
        Drained: a call of `drain.ask()` requested the end.
        EsperError: the run failed; its directory has the journal and the checkpoints up to the failure.
    """
    check_type("config", config, RunConfig, 'give an esper.RunConfig, such as esper.RunConfig(run={"epochs": 3})')
    check_watchers(progress, drain)
    task, _ = given_task(task)
    used, reference = _launcher(on), _reference(reference, task)
    job = _Job(task, config or RunConfig(), reference)
    return _carry_out(job, used, progress, drain, lambda conductor, survey: conductor.begin(survey))


@from_here()
def resume(
    run_dir: str | os.PathLike[str],
    task: Task | str | None = None,
    settings: Mapping[str, object] | None = None,
    *,
    on: InProcess | OnRay = HERE,
    broken: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    drain: Drain | None = None,
) -> Result:
    """Resume a run from its last committed checkpoint, with the same bits as a run that was never interrupted.

    ```python
    result = esper.resume("runs/my-run", settings={"run.epochs": 12})
    ```

    The run may be resumed in another place than before (`on`), for example in this process instead of on Ray. A run
    that has ended is not run again, unless `settings` makes it longer. The result of the ended run is returned, and its
    network is loaded on first use of `result.network`. Emergency signals that the sinks of the run have not confirmed
    are sent again.

    Args:
        run_dir: A run directory, or a snapshot of a run.
        task: The task of the run, or its reference as a text. Needed only if `run.json` has no reference to it.
        settings: New values of config keys, by dotted key, such as `run.epochs`. Keys that fix the bits of a run are
            refused.
        on: The place of the run, `esper.InProcess()` or `esper.OnRay()`.
        broken: A TOML file of `[[faults]]` to inject. None: no fault is injected, even if the run began with faults.
        progress, drain: See `esper.run`.

    Raises:
        ConfigError: the run cannot be resumed with these arguments; nothing was changed.
        Drained: a call of `drain.ask()` requested the end.
        EsperError: the run failed; its directory has the journal and the checkpoints up to the failure.
    """
    if not isinstance(task, str | None):
        given_task(task)
    check_type("settings", settings, Mapping, 'give a dict by dotted keys, such as {"run.epochs": 12}')
    for key in settings or {}:
        check_type("settings", key, str, "give keys as texts, such as run.epochs")
    check_watchers(progress, drain)
    used, run_dir = _launcher(on), path_of("run_dir", run_dir)
    faults_of = path_of("broken", broken) if broken is not None else None
    with resumed(run_dir, task, settings or {}, faults_of) as found:
        if isinstance(found, Ended):
            deliver_the_rest(fixed(run_dir), found.identity, found.config, progress or Quiet())
            return Result.of(found.summary, fixed(run_dir), task=task)
        directory, past = found.directory, found.past
        job = _Job(found.task, found.config, found.reference, fence=past.fence)
        return _carry_out(job, used, progress, drain, lambda one, survey: one.resume(survey, directory, past))


def repeat(
    task: Task,
    config: RunConfig,
    policy: Policy | None,
    signals: Sequence[Entry],
    progress: Progress,
    drain: Drain,
) -> Result:
    """Run a task again in this process, with the emergency levels of an earlier run.

    Args:
        signals: The signals that the earlier run journaled. Their levels are in force at the same fences.

    Raises:
        Exception: as `run`.
    """
    job = _Job(task, config, Reference(), tuple(signals))
    on = _launcher(InProcess(policy=policy))
    return _carry_out(job, on, progress, drain, lambda conductor, survey: conductor.begin(survey))


@dataclass(frozen=True)
class _Job:
    """The inputs of a run."""

    task: Task
    config: RunConfig
    reference: Reference
    signals: tuple[Entry, ...] = ()
    """Signals of an earlier run whose levels are in force again."""
    fence: int = 0
    """The fence at which the run stands."""


def _carry_out(
    job: _Job,
    used: Launcher,
    progress: Progress | None,
    drain: Drain | None,
    conduct: Callable[[Conductor, Survey], Summary],
) -> Result:
    """Survey the task, and let `conduct` execute the run to its end. Return the summary of the run with the network.

    Raises:
        ConfigError: an input is wrong; nothing was written.
        CheckpointCorrupt: the last checkpoint, from which the network is loaded, does not load.
        Exception: as `conduct`.
    """
    drain = drain or Drain()
    faults.check(job.config.faults, used.fault_points(job.config))
    with only_run(), process_state(job.config.run.threads):
        progress = progress or Quiet()
        if job.config.run.compile:
            progress.found(announced(job.config.run.compile_backend))
        with drain.starting(job.fence):
            survey = survey_of(job.task, job.config)
            bring_up = used.prepare(survey, job.reference)
        name = used.conductor_name
        conductor = Conductor(name, bring_up, job.reference, progress, used.clock, drain, used.policy, job.signals)
        summary = conduct(conductor, survey)
        place = fixed(Path(summary.run_dir))
        if summary.ends_with == "twin":  # it is in the last checkpoint
            return Result.of(summary, place, network=load(place, task=job.task, fence=summary.rounds))
        return Result.of(summary, place, network=used.network(place, job.task, summary.rounds))


def check_watchers(progress: Progress | None, drain: Drain | None = None) -> None:
    """Raises: ConfigError: one of them has a wrong type."""
    names = [name for name in vars(Progress) if not name.startswith("_")]
    check_methods("progress", progress, names, "give an object with the methods of esper.Progress")
    check_type("drain", drain, Drain, "give an esper.Drain()")


def _reference(given: Reference | str | None, task: Task) -> Reference:
    """Raises: ConfigError: it is no reference, or names another task."""
    if isinstance(given, str):
        return check_reference(given, task)
    check_type("reference", given, Reference, 'give a text, such as "my_task.py:task"')
    return given or Reference()


def _launcher(on: InProcess | OnRay) -> Launcher:
    """Raises: ConfigError: `on` is neither `InProcess` nor `OnRay`, or the package `actors` is not installed."""
    if isinstance(on, InProcess):
        return InProcessLauncher(on)
    if isinstance(on, OnRay):
        made: Launcher = launcher("ray")(on)
        return made
    raise ConfigError("on", on, "give esper.InProcess() or esper.OnRay()")
