"""Figures of a whole shard: its loss, and the task's metrics. It is given outputs; it runs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esper.ground.random_streams import restore_streams, streams
from esper.task import Loss, Task
from esper.tolaria.loss import check_mean, sample_losses
from esper.tolaria.task_metrics import Metric, Seen
from esper.tolaria.weighing import Weighted


def losses_of(task: Task, sample_loss: Loss, seen: Seen) -> Weighted:
    """The losses of a batch's samples, after a comparison with the task's own loss of the batch.

    Both functions get the same random numbers and the same figures: `task.loss` gets copies, and the random streams
    go on as if it had not been called.

    Raises:
        TaskError: the weighted mean of the losses is not what `task.loss` gives, or one of the two is no such function.
    """
    spare, before = seen.copied(), streams()
    losses = sample_losses(sample_loss, seen.output, seen.target, seen.samples)
    after = streams()
    restore_streams(before)
    check_mean(task, spare.output, spare.target, losses, seen.name)
    restore_streams(after)
    return losses


def means_over(batches: Iterable[Seen], task: Task, sample_loss: Loss) -> dict[str, float]:
    """The loss of all samples together, as "loss", and each metric over all of them; see `Metric`.

    Raises:
        TaskError: the losses of a batch are not those of `task.loss`; a metric gave something that is no figure; or the
            batches cannot be joined for a metric that needs it.
    """
    losses: list[Weighted] = []
    figures = [Metric(name, metric) for name, metric in task.metrics.items()]
    kept: list[Seen] = []
    for seen in batches:
        spare = seen.copied() if figures else seen
        losses.append(losses_of(task, sample_loss, seen))
        for figure in figures:
            figure.add(spare)
        if any(figure.at_once for figure in figures):
            kept.append(spare)
    return {"loss": Weighted.joined(losses).mean()} | {figure.name: figure.result(kept) for figure in figures}


def check_measures(task: Task, sample_loss: Loss, shard: str, some: Sequence[Seen], samples: int) -> None:
    """Let a task pass whose loss and metrics give, of some batches, what they would give of the whole shard.

    Args:
        some: One or several evaluation batches of the shard, the first one of it first.
        samples: In the whole shard.

    Raises:
        TaskError: a measure gave something else; it is no mean over samples; or it needs too much memory.
    """
    spares = [seen.copied() for seen in some]
    for seen in some:
        losses_of(task, sample_loss, seen)
    for name, metric in task.metrics.items():
        figure = Metric(name, metric)
        for seen in spares:
            figure.add(seen)
        mean = figure.result(spares)
        if figure.at_once:
            figure.check_memory(spares[0], shard, samples)
        elif len(spares) > 1:
            figure.check_mean(spares, mean)
