"""A run across processes, begun or gone on with, as `esper.flow.in_process` in one. The same line, the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from actors.bring_up import bring_up, fault_points
from actors.desk import CONDUCTOR
from actors.embedded_ray import EmbeddedRay
from actors.task_transport import SentProspect
from esper import faults
from esper.archive.result import Result
from esper.config.joined import RunConfig
from esper.export.loading import load
from esper.flow.progress import Progress, Quiet
from esper.flow.resuming import resumed
from esper.flow.runner import Conductor
from esper.flow.stopping import Drain
from esper.ground.clock import SystemClock
from esper.ground.workplace import fixed, from_here
from esper.setup.survey import survey
from esper.task import Task
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import Reference


@from_here()
def launch(
    task: Task,
    config: RunConfig | None = None,
    *,
    reference: Reference | None = None,
    progress: Progress | None = None,
    drain: Drain | None = None,
    embedded: EmbeddedRay | None = None,
) -> Result:
    """Train and grow a task's network on a Ray of its own, with an actor for each room.

    The result's `network` is loaded from the last checkpoint, on the CPU, once all actors have ended.

    Args:
        reference: Where the task comes from; each actor then loads it from there. Without one the task itself is
            sent, and must be picklable by value.
        progress: Shown to people while it runs; by default nothing is.
        embedded: A Ray of ours that is up already and stays up; by default the run has one of its own.
        drain: Ask it, from a signal handler say, and the run ends at the next fence.

    Raises:
        ConfigError: an input is wrong; nothing was written.
        TaskError: the task has no reference and cannot be sent; nothing was written.
        Drained: `drain` asked for it.
        EsperError: the run failed; its directory keeps the journal up to there.
    """
    config, reference, drain = config or RunConfig(), reference or Reference(), drain or Drain()
    faults.check(config.faults, fault_points(config))
    with process_state(config.run.threads):
        with drain.starting():
            prospect = survey(task, config)
            sent = SentProspect.of(prospect, reference)
        conductor = Conductor(CONDUCTOR, bring_up(sent, embedded), reference, progress or Quiet(), SystemClock(), drain)
        return _with_network(conductor.begin(prospect), task)


@from_here()
def resume(
    run_dir: Path,
    task: Task | None = None,
    settings: Mapping[str, object] | None = None,
    *,
    broken: Path | None = None,
    progress: Progress | None = None,
    drain: Drain | None = None,
    embedded: EmbeddedRay | None = None,
) -> Result:
    """Go on with a run of `run_dir` on Ray, from its last fence; of one that has ended, its result.

    Args:
        task: Needed only where the run's task has no reference.
        settings: Config values by dotted key that shall be other than they were; see `esper.flow.resuming`.
        broken: A file of `[[faults]]`; without one nothing is armed, whatever was before.

    Raises:
        ConfigError: the run cannot be gone on with so; nothing was changed.
        EsperError: the run failed; its directory keeps the journal and the checkpoints up to there.
    """
    drain = drain or Drain()
    with resumed(run_dir, task, settings or {}, broken) as found:
        if isinstance(found, Result):
            return found
        faults.check(found.config.faults, fault_points(found.config))
        with process_state(found.config.run.threads):
            with drain.starting():
                prospect = survey(found.task, found.config)
                sent = SentProspect.of(prospect, found.reference)
            up = bring_up(sent, embedded)
            conductor = Conductor(CONDUCTOR, up, found.reference, progress or Quiet(), SystemClock(), drain)
            return _with_network(conductor.go_on(prospect, found.directory, found.past), found.task)


def _with_network(result: Result, task: Task) -> Result:
    """Raises: CheckpointCorrupt: the checkpoint at the end of the run does not load."""
    return result.model_copy(update={"network": load(fixed(Path(result.run_dir)), task=task, fence=result.rounds)})
