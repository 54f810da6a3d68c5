"""Rehearses the first steps of a run, to refuse state that a checkpoint would not save. The error names the state.

A new build of the network loads the snapshot of a trained network, and both take the same next step. Afterwards their
bits and their attributes must be equal, because otherwise forks, the twin and resumed runs would train differently from
the original. A cache is accepted. It is an attribute that becomes equal when both networks have seen the same batches.

The rehearsal ends with the third step. It does not find state that changes for the first time after the
third step. If that state is in attributes, `esper.tolaria.unkept` finds it at the fences. If only some samples change
the state of a data set, the state is found only if these steps or `esper.setup.draws` draw one of these samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.errors import DependencyViolationError, DivergenceUnrecoverable, TaskError
from esper.ground.nested import mapped
from esper.ground.random_streams import restore_streams, streams
from esper.ground.tensors import state_crc32c
from esper.task import Task
from esper.tolaria.data import TaskData
from esper.tolaria.snapshot_codec import check_own_state
from esper.tolaria.trainer import Trainer
from esper.tolaria.unkept import Build, Changing, build_of, changed_between, of_parts, rebuilt
from esper.user_code.attributes import Held, different, held_by, path_in_words
from esper.user_code.mends import mend_of
from esper.user_code.shared_state import check_shared, kinds_of, shared_by
from esper.user_code.their_code import raise_as_theirs

STEPS_BEFORE = 2
"""Steps before the snapshot. After these steps the optimizer has its state, and a set-up in the first step is
complete."""

OTHER_BITS = "a restored network trains to different bits"
NO_ATTRIBUTE = (
    "a step depends on something that is in no attribute (a file, a clock, the system's entropy): make it a buffer, "
    "or draw from the seeded global generators"
)


class Remembered:
    """A replacement for `TaskData` that loads each training batch once; every later call returns a copy of the batch.

    A later call sets the random streams to the state that they had after the first loading, so that both networks see
    the same streams.
    """

    def __init__(self, data: TaskData) -> None:
        self._data = data
        self._batches: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:  # Any: as TaskData's
        return getattr(self._data, name)

    def batch(self, step: int) -> Any:  # Any: see `TaskData.batch`
        """See `TaskData.batch`. The caller may change the batch."""
        if step not in self._batches:
            self._batches[step] = self._data.batch(step), streams()
        batch, left = self._batches[step]
        restore_streams(left)
        return mapped(torch.clone, batch)


class Rehearsed(NamedTuple):
    """Results of the first steps of a run. Empty if training diverged."""

    first_loss: float | None
    """Loss of step 0."""
    weights_crc32c: int | None
    """Checksum of all tensors after the last step of the rehearsal."""
    changing: Changing
    """Attributes of model, optimizer and scheduler that changed before the snapshot. Each of these attributes is
    restored, or is a cache."""


@dataclass(frozen=True)
class _Course:
    """Losses and state of a network one step after a snapshot."""

    losses: tuple[float, ...]
    saved: Held
    """Everything that a snapshot stores."""
    attributes: dict[str, Held]
    """The attributes after both networks have seen the same batches in the same order."""


def tensors_of(host: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name. Buffers that `state_dict` leaves out are included."""
    return {**dict(host.named_parameters()), **dict(host.named_buffers())}


def check_same_build(first: nn.Module, made: Held, second: nn.Module) -> None:
    """Check that two builds of the network share no tensor and are equal. Forks, the twin and the live host are
    separate builds.

    Args:
        made: State of the first build when it was built. Since then a forward pass may have changed the build.

    Raises:
        TaskError: two builds share a tensor, or differ.
    """
    others = tensors_of(second)
    for name, one in tensors_of(first).items():
        if name in others and one is others[name]:
            raise TaskError("task.model", name, "two calls returned the same parameter; build a new module in each")
    if other := different(made, held_by(others)):
        mend = "two calls gave other weights; draw from the seeded global generators"
        raise TaskError("task.model", path_in_words(other[0]), mend)


def rehearse(
    task: Task, first: Trainer, make: Callable[[], Trainer], total_steps: int, *, same_bits: bool
) -> Rehearsed:
    """Train a fresh network for a few steps, restore it into another fresh network, and compare losses and states.

    Args:
        first: A network at step 0. It is trained.
        make: Builds another network of the same task.
        total_steps: Steps of the run. The rehearsal takes no more.
        same_bits: The device promises the same bits.

    Returns: Losses, checksum and changed attributes. If training diverged, nothing was compared.

    Raises:
        TaskError: training changes state that no snapshot stores; the error names the object and the attribute.
    """
    no_telemetry = Context()  # the rehearsal must not count in the caller's telemetry
    try:
        return no_telemetry.run(_rehearse, task, first, make, total_steps, same_bits)
    except DivergenceUnrecoverable:
        return Rehearsed(None, None, {})


def _rehearse(task: Task, first: Trainer, make: Callable[[], Trainer], total_steps: int, same_bits: bool) -> Rehearsed:
    steps = min(STEPS_BEFORE, total_steps - 1)
    kinds, unkept = kinds_of(*first.parts().values()), of_parts(first.parts(), {})
    made, built = _attributes(first), build_of(first.host)
    losses = first.train_to(steps)
    refuse_rebuilt(built, first.host)
    first.glance_evaluating(0)
    snapshot, before = first.snapshot(), _attributes(first)
    changing = changed_between(unkept, of_parts(first.parts(), {}))
    check_own_state(snapshot)
    second = make()
    course = _go_on(first, steps + 1)
    shared = shared_by(task, kinds)
    with taking_over():
        second.become(snapshot)
    restored = {field: different(before[field], held) for field, held in _attributes(second).items()}
    repeated = _go_on(second, steps + 1)
    blame_unkept(made, restored, course.attributes, repeated.attributes)
    check_shared(shared, shared_by(task, kinds))
    if same_bits and (course.losses, course.saved) != (repeated.losses, repeated.saved):
        blame_attribute(made, before, restored)
        raise TaskError("task.model", _where(course, repeated), f"{OTHER_BITS}: {NO_ATTRIBUTE}")
    return Rehearsed((*losses, *course.losses)[0], state_crc32c(tensors_of(first.host)), changing)


def refuse_rebuilt(built: Build, host: nn.Module) -> None:
    """Raises: TaskError: training registered, replaced or reshaped a tensor, so no snapshot can be loaded."""
    for name, mend in rebuilt(built, build_of(host)):
        raise TaskError("task.model", name, f"training changes it, so that a new build cannot load its state: {mend}")


def _attributes(trainer: Trainer) -> dict[str, Held]:
    saved = {id(tensor) for tensor in (*trainer.host.parameters(), *trainer.host.buffers())}
    return {field: held_by(part, saved) for field, part in trainer.parts().items()}


def _go_on(trainer: Trainer, step: int) -> _Course:
    losses = trainer.train_to(step)
    snapshot = trainer.snapshot()
    parts = (snapshot.tensors, snapshot.optimizer, snapshot.scheduler, snapshot.modules)
    saved = held_by(dict(zip(("tensors", "optimizer", "scheduler", "modules"), parts, strict=True)))
    for seen in range(step):
        trainer.glance(seen)
    trainer.glance_evaluating(0)
    return _Course(losses, saved, _attributes(trainer))


@contextmanager
def taking_over() -> Iterator[None]:
    """Return a context for the code that loads the state of a trained network into a new build.

    Raises:
        TaskError: the new build cannot load the state. If a call of the user's code raised, the error names the call.
    """
    try:
        yield
    except DependencyViolationError as error:
        if error.__cause__ is not None:
            raise_as_theirs(error.__cause__, "in a fresh build, with the state of a trained network")
        mend = "make every tensor in the factory, so that a new build has the tensors of a trained network"
        raise TaskError("task", f"{error}", f"its state cannot be restored into a fresh build: {mend}") from error


def blame_unkept(
    made: dict[str, Held], restored: dict[str, list[str]], now: dict[str, Held], repeated: dict[str, Held]
) -> None:
    """Raise an error for an attribute that the restore did not set, if it still differed after both networks took the
    same step.

    Some numbers and names differ between two builds, and training does not change them. They are accepted, because they
    may be times or ids.

    Raises:
        TaskError: training changed the attribute, or two builds have different values of it.
    """
    for field, paths in restored.items():
        stuck = set(different(now[field], repeated[field]))
        for path in (path for path in paths if path in stuck):
            if made[field].get(path) != now[field].get(path):
                raise TaskError(
                    field,
                    path_in_words(path),
                    f"training changes it and no checkpoint saves it: {mend_of(field, path, now[field], made[field])}",
                )
            leaf = made[field].get(path)
            if leaf is not None and leaf.is_random_or_numeric:
                raise TaskError(
                    field,
                    path_in_words(path),
                    f"two builds gave it different values: {mend_of(field, path, made[field])}",
                )


def blame_attribute(made: dict[str, Held], before: dict[str, Held], restored: dict[str, list[str]]) -> None:
    """Raises: TaskError: training changed an attribute, and the restore did not set it back."""
    for field, paths in restored.items():
        for path in paths:
            if made[field].get(path) != before[field].get(path):
                raise TaskError(
                    field,
                    path_in_words(path),
                    f"{OTHER_BITS}, because no checkpoint saves it: {mend_of(field, path, before[field], made[field])}",
                )


def _where(one: _Course, other: _Course) -> str:
    """Return the first difference between the results of two networks."""
    if found := different(one.saved, other.saved):
        return f"different bits in {path_in_words(found[0])}"
    return f"losses {one.losses} and {other.losses}"
