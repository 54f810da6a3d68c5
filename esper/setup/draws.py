"""Checks before a run that every data set returns the same samples again if the random streams are the same."""

from __future__ import annotations

from typing import Any

from esper.errors import TaskError
from esper.ground.random_streams import generator, streams
from esper.task import Task
from esper.tolaria.data import TaskData
from esper.tolaria.snapshot_codec import check_plain
from esper.user_code.attributes import Held, different, held_by, path_in_words
from esper.user_code.shared_state import check_shared, shared_by

SAMPLES = 256
"""Number of samples that are drawn twice from each data set, at random indices that are the same in every survey.
All samples of a smaller data set are drawn. Other samples are not checked."""
LOT = 32
"""Number of samples in one batch of these checks."""
COLLATE_MEND = "draw from the seeded global generators (random, numpy.random, torch), not from one of its own"
MEND = (
    "draw from the seeded global generators, cache nothing random, or give the data set state_dict and load_state_dict"
)


def rehearse_draws(task: Task, data: TaskData) -> None:
    """Draw samples of every data set twice, in the same order and with the same random streams, and compare them.

    A data set may cache values that depend only on the index of a sample, because the second drawing then returns the
    same samples.

    Raises:
        TaskError: a data set has state on which later samples depend. If the state is in an attribute, the error names
            the attribute.
    """
    for name, state in data.made_with.items():
        check_plain(f"task.{name}", state)
    seen: list[object] = []
    for name, shard in data.shards.items():
        if len(shard) and not any(shard.samples is other for other in seen):
            seen.append(shard.samples)
            _rehearse(task, data, name)


def _rehearse(task: Task, data: TaskData, name: str) -> None:
    shard, field = data.shards[name], f"task.{name}"
    chosen = generator(0, "draws", name).permutation(len(shard.samples))[:SAMPLES].tolist()
    lots = [chosen[start : start + LOT] for start in range(0, len(chosen), LOT)]
    fresh = held_by(shard.samples)
    first, once, shared = _drawn(data, name, lots), held_by(shard.samples), shared_by(task)
    second, twice = _drawn(data, name, lots), held_by(shard.samples)
    now, changed = shared_by(task), different(once, twice)
    own = _generator(shared, now)
    if first != second and not changed and (own or now == shared) and _collates_otherwise(data, name, lots):
        what = own or "two batches of the same samples"
        raise TaskError("task.collate", what, f"it makes different batches of the same samples: {COLLATE_MEND}")
    check_shared(shared, now)  # checked first, because shared state would otherwise be reported as an attribute
    if first != second:
        blamed = changed or different(fresh, once)
        what = path_in_words(blamed[0]) if blamed else "no attribute that esper can read"
        raise TaskError(
            field,
            what,
            f"drawing the same indices again gives other samples, or uses another amount of random numbers: {MEND}",
        )
    generators = [path for path in different(fresh, once) if path in once and once[path].kind == "generator"]
    if blamed := changed or generators:
        raise TaskError(field, path_in_words(blamed[0]), f"drawing changes it and no checkpoint saves it: {MEND}")


def _collates_otherwise(data: TaskData, name: str, lots: list[list[int]]) -> bool:
    """Return whether `task.collate` makes different batches when it gets the same samples twice."""
    for lot in lots:
        with data.at(data.made_with):
            samples = data.samples(name, lot)
        first, second = (held_by(data.collated(samples)) for _ in range(2))
        if first != second:
            return True
    return False


def _generator(before: dict[str, Held], after: dict[str, Held]) -> str:
    """Return the first random generator among the shared objects that drawing has changed. Return an empty text if
    drawing has changed no generator.
    """
    for name, held in before.items():
        for path in different(held, after[name]) if name in after else ():
            if path in held and held[path].kind == "generator":
                return f"{path_in_words(path)} of {name}" if name.startswith("module ") else path_in_words(path)
    return ""


def _drawn(data: TaskData, name: str, lots: list[list[int]]) -> list[tuple[Held, Held]]:
    """Return a digest of each batch and of the random streams after it. The state of the data set is not reset between
    batches.
    """
    found: list[tuple[Held, Held]] = []
    state: dict[str, Any] = data.made_with
    for lot in lots:
        with data.at(state):
            batch = data.probe(name, lot)
            found.append((held_by(batch), held_by(streams())))
            state = data.state()
    return found
