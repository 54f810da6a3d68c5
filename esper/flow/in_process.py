"""One run in this process, without Ray: its four rooms are plain objects, and the line through them is `line.py`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from esper import faults
from esper.archive.result import Result
from esper.config.joined import RunConfig
from esper.flow.crew import NoInbox, OneProcess, Rooms
from esper.flow.progress import Progress, Quiet
from esper.flow.resuming import resumed
from esper.flow.runner import BringUp, Conductor
from esper.flow.stopping import Drain
from esper.ground.clock import Clock, SystemClock
from esper.ground.workplace import from_here
from esper.leyline.ports import Policy
from esper.setup.assembly import RunKey, make_incubator, make_kasmina, make_tamiyo, make_trainer
from esper.setup.survey import Prospect, survey
from esper.task import Task
from esper.tolaria.trainer import Trainer
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import Reference

STARTS = ("kasmina.start", "tamiyo.start", "tolaria.start")
ONE_PROCESS = {"": {point for point in faults.POINTS if not point.startswith("emergency.") and point not in STARTS}}
"""The fault points that are passed here, by the one process that there is, which has no name."""


@from_here()
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
        drain: Ask it, from a signal handler say, and the run ends at the next fence.

    Raises:
        ConfigError: an input is wrong; nothing was written.
        Drained: `drain` asked for it.
        EsperError: the run failed; its directory keeps the journal and the checkpoints up to there.
    """
    clock, config, drain = clock or SystemClock(), config or RunConfig(), drain or Drain()
    faults.check(config.faults, ONE_PROCESS)
    trainers: list[Trainer] = []
    bring_up = _here(clock, policy, trainers)
    with process_state(config.run.threads):
        with drain.starting():
            prospect = survey(task, config)
        conductor = Conductor("", bring_up, reference or Reference(), progress or Quiet(), clock, drain)
        result = conductor.begin(prospect)
    return result.model_copy(update={"network": trainers[0].release()})


@from_here()
def resume(
    run_dir: Path,
    task: Task | None = None,
    settings: Mapping[str, object] | None = None,
    *,
    broken: Path | None = None,
    policy: Policy | None = None,
    progress: Progress | None = None,
    clock: Clock | None = None,
    drain: Drain | None = None,
) -> Result:
    """Go on with a run of `run_dir` in this process, from its last fence; of one that has ended, its result.

    Args:
        task: Needed only where the run's task has no reference.
        settings: Config values by dotted key that shall be other than they were; see `esper.flow.resuming`.
        broken: A file of `[[faults]]`; without one nothing is armed, whatever was before.

    Raises:
        ConfigError: the run cannot be gone on with so; nothing was changed.
        EsperError: the run failed; its directory keeps the journal and the checkpoints up to there.
    """
    clock, drain = clock or SystemClock(), drain or Drain()
    trainers: list[Trainer] = []
    bring_up = _here(clock, policy, trainers)
    with resumed(run_dir, task, settings or {}, broken) as found:
        if isinstance(found, Result):
            return found
        faults.check(found.config.faults, ONE_PROCESS)
        with process_state(found.config.run.threads):
            with drain.starting():
                prospect = survey(found.task, found.config)
            conductor = Conductor("", bring_up, found.reference, progress or Quiet(), clock, drain)
            result = conductor.go_on(prospect, found.directory, found.past)
    return result.model_copy(update={"network": trainers[0].release()})


def _here(clock: Clock, policy: Policy | None, trainers: list[Trainer]) -> BringUp:
    """Brings the rooms up in this process; the trainer is added to `trainers`."""

    def bring_up(prospect: Prospect, key: RunKey, path: Path) -> AbstractContextManager[Rooms]:
        del path
        trainer = make_trainer(prospect, key)
        trainers.append(trainer)
        rooms = Rooms(
            trainer=trainer,
            tamiyo=make_tamiyo(prospect, key, clock, policy),
            kasmina=make_kasmina(prospect, key, clock),
            incubator=make_incubator(prospect, key),
            inbox=NoInbox(),
            crew=OneProcess(),
        )
        return nullcontext(rooms)

    return bring_up
