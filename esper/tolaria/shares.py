"""Refuses data sets that are too small for judging, testing or one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esper.errors import ConfigError, TaskError
from esper.task import Task

SPLIT_SHARE = 0.1
"""Share of `train` for each of the shards pick, gate and test for which the task has no data set."""
JUDGING = ("pick", "gate")
"""Shards on which candidates are judged. Not used without growth."""


@dataclass(frozen=True)
class Units:
    """Size of a shard, counted in independent units."""

    count: int
    what: str
    """"samples", or "groups" if samples are correlated."""

    def __str__(self) -> str:
        return f"{self.count} {self.what}"


def split_off(task: Task) -> list[str]:
    """Return the names of the shards that are split off `train`, in the order of splitting."""
    return [name for name in (*JUDGING, "test") if getattr(task, name) is None]


def check_judging(task: Task, judging: Mapping[str, Units], train: Callable[[], Units], minimum: int) -> None:
    """Refuse judging shards below `growth.min_samples`.

    Args:
        judging: Sizes of the shards pick and gate, by name.
        train: Function that returns the size of the whole `task.train`, before the split. It is called only for a
            message.
        minimum: `growth.min_samples`. 0 without growth.

    Raises:
        ConfigError: a judging shard is too small.
    """
    small = [name for name in JUDGING if judging[name].count < minimum]
    if not small:
        return
    name, found = small[0], judging[small[0]]
    fields = " and ".join(f"{one}=" for one in small)
    mends = [f"give {fields} at least {minimum} {found.what}"]
    why = f"judging needs growth.min_samples = {minimum} {found.what}"
    if getattr(task, name) is None:
        why = f"a tenth of the {train()} of task.train; {why}"
        mends.append(f"give task.train at least {round(minimum / SPLIT_SHARE)} {found.what}")
    least = min(units.count for units in judging.values())
    if least >= 2:
        mends.append(f"lower growth.min_samples to {least}, with which only large gains pass G2")
    mends.append("train without growth (--no-growth, growth.enabled=false)")
    raise ConfigError(f"task.{name}", str(found), f"{why}: {', or '.join(mends)}")


def check_test(test: int, train: Callable[[], Units]) -> None:
    """Refuse an empty test shard. Raises: TaskError: the test shard is empty. It was split off `train`."""
    if test == 0:
        whole = train()
        mend = f"a tenth of the {whole} of task.train is less than one; give test=, or at least 10 {whole.what}"
        raise TaskError("task.test", "0 samples", mend)


def check_batch(task: Task, batch_size: int, epoch_samples: int, left: int) -> None:
    """Refuse a batch size that is larger than an epoch.

    Args:
        epoch_samples: Samples in an epoch.
        left: Samples of `train` after the other shards were split off.

    Raises:
        ConfigError: `batch_size` is larger than `epoch_samples`.
    """
    if batch_size <= epoch_samples:
        return
    field = "task.batch_size" if batch_size == task.batch_size else "run.batch_size"
    taken = split_off(task)
    why = f"an epoch has only {epoch_samples} samples"
    if taken and epoch_samples == left:
        why += f", those of the {len(task.train)} of task.train that are left without {', '.join(taken)}"
    raise ConfigError(field, batch_size, f"{why}; use {epoch_samples} or less")
