"""A run across processes, as `esper.loop.run` is one in this process. The same line, the same bits."""

from __future__ import annotations

from actors.bootstrap import EmbeddedRay
from actors.conductor import actor_roles, bring_up
from actors.source import SentProspect
from esper import faults
from esper.clock import SystemClock
from esper.config import RunConfig
from esper.loop import Drain, conduct, torch_threads
from esper.progress import Progress, Quiet
from esper.prospect import survey
from esper.references import Reference
from esper.summary import Result
from esper.task import Task


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

    The result has no `network`: it lies in the trainer's process, which has ended.

    Args:
        reference: Where the task comes from; each actor then loads it from there. Without one the task itself is
            sent, and must be picklable by value.
        progress: Shown to people while it runs; by default nothing is.
        embedded: A Ray of ours that is up already and stays up; by default the run has one of its own.
        drain: Set its `requested`, from a signal handler say, and the run ends at the next fence.

    Raises:
        ConfigError: an input is wrong; nothing was written.
        TaskError: the task has no reference and cannot be sent; nothing was written.
        Drained: `drain` asked for it.
        EsperError: the run failed; its directory keeps the journal up to there.
    """
    config, reference, drain = config or RunConfig(), reference or Reference(), drain or Drain()
    faults.check(config.faults, actor_roles(config))
    with torch_threads(config.run.threads):
        with drain.starting():
            prospect = survey(task, config)
            sent = SentProspect.of(prospect, reference)
        return conduct(prospect, bring_up(sent, embedded), reference, progress or Quiet(), SystemClock(), drain)
