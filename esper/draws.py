"""Whether data sets give the same samples whenever they are asked under the same random stream, found before a run."""

from __future__ import annotations

from typing import Any

from esper.attributes import Held, different, held_by, path_in_words
from esper.errors import TaskError
from esper.shared_state import check_shared, shared_by
from esper.streams import generator, streams
from esper.task import Task
from esper.tolaria.data import TaskData
from esper.tolaria.plain import check_plain

SAMPLES = 256
"""Drawn of each data set, twice: all of a small one, else as many at keyed random places. Nothing else is looked at."""
LOT = 32
"""Of them, drawn at a time."""
MEND = (
    "draw from the seeded global generators, cache nothing random, or give the data set state_dict and load_state_dict"
)


def rehearse_draws(task: Task, data: TaskData) -> None:
    """Draw samples of every data set, twice in the same order under the same streams, and compare.

    A cache of what follows from the index alone is no state: the second draws give the same and change nothing.

    Raises:
        TaskError: a data set remembers something that later draws depend on; it is named where it is an attribute.
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
    changed = different(once, twice)
    if first != second:
        blamed = changed or different(fresh, once)
        what = path_in_words(blamed[0]) if blamed else "two draws of the same samples"
        raise TaskError(
            field, what, f"the same samples drawn again are other ones, or use other random numbers: {MEND}"
        )
    generators = [path for path in different(fresh, once) if path in once and once[path].kind == "generator"]
    if blamed := changed or generators:
        raise TaskError(field, path_in_words(blamed[0]), f"drawing changes it and no checkpoint keeps it: {MEND}")
    check_shared(shared, shared_by(task))


def _drawn(data: TaskData, name: str, lots: list[list[int]]) -> list[tuple[Held, Held]]:
    """Each lot and the random streams that it leaves. Data sets that keep a state go on from lot to lot."""
    found: list[tuple[Held, Held]] = []
    state: dict[str, Any] = data.made_with
    for lot in lots:
        with data.at(state):
            batch = data.probe(name, lot)
            found.append((held_by(batch), held_by(streams())))
            state = data.state()
    return found
