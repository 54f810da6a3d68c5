"""Computes the loss and the task's metrics over a whole shard, from outputs of the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esper.ground.random_streams import restore_streams, streams
from esper.task import Loss, Task
from esper.tolaria.loss import check_mean, sample_losses
from esper.tolaria.task_metrics import Metric, Seen
from esper.tolaria.weighing import Weighted


def losses_of(task: Task, sample_loss: Loss, seen: Seen) -> Weighted:
    """Return the losses of a batch's samples. Check that their mean is the task's loss of the batch.

    The functions of both losses get the same random numbers and equal tensors. `task.loss` gets copies. Its call does
    not affect later random numbers.

    Raises:
        TaskError: the weighted mean of the losses differs from `task.loss`, or a function returned a wrong shape
            or type.
    """
    spare, before = seen.copied(), streams()
    losses = sample_losses(sample_loss, seen.output, seen.target, seen.samples)
    after = streams()
    restore_streams(before)
    check_mean(task, spare.output, spare.target, losses, seen.name)
    restore_streams(after)
    return losses


def means_over(batches: Iterable[Seen], task: Task, sample_loss: Loss) -> dict[str, float]:
    """Return the joint loss of all samples, as "loss", and each metric over all samples, by name; see `Metric`.

    Raises:
        TaskError: the losses of a batch do not match `task.loss`; a metric did not return real numbers; or the batches
            cannot be joined for a metric that needs all batches at once.
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
    """Refuse a task if its loss or metrics cannot be computed over a whole shard. Only a few batches are tried.

    Args:
        some: One or more evaluation batches of the shard, beginning with its first batch.
        samples: Number of samples in the whole shard.

    Raises:
        TaskError: a loss or metric did not return real numbers, is not a mean over samples, or needs too much memory.
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
