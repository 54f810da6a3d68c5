"""Finds state that no checkpoint stores: compares attributes at each fence with their values before the first step.

The survey refuses state that its steps change (`setup/rehearsal.py`). This module finds state that first changes later.
It runs before the fence is committed, because a checkpoint without the state would restore another network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from esper.errors import DependencyViolationError, StateNotKept, TaskError
from esper.task import Task
from esper.tolaria.data import SHARD_NAMES, TaskData
from esper.user_code.attributes import MOST, Held, Leaf, Limits, different, held_by, path_in_words
from esper.user_code.mends import FACTORY_MEND, OBJECTS, mend_of
from esper.user_code.own_modules import reached_by
from esper.user_code.shared_state import kinds_of, shared_by

if TYPE_CHECKING:
    from esper.tolaria.trainer import Trainer

Changing = Mapping[str, frozenset[str]]
"""Name of a field of the task, or name of a module -> paths that changed in the survey's steps. The survey found that
they are not state."""

DATA_LIMITS = Limits(values=1_000, whole_bytes=2**20)
"""Limits for reading a data set. Only its first values and parts of its arrays are read, because it may have millions
of samples."""

KIND_MEND = "make it in the factory with its final shape and type; size a table that grows for the longest input"
FLAG_MEND = "freeze and unfreeze in the factory; the optimizer has the parameters that are trainable there"
_DATA = frozenset(f"task.{name}" for name in SHARD_NAMES)
GROWING = frozenset({"list", "deque", "full deque", "set"})
"""Kinds of containers that count as logs if they only grow. Logs may change. Only containers that all networks share
can be logs."""


# -- reading -----------------------------------------------------------------------------------------------------


def of_parts(parts: Mapping[str, object], changing: Changing) -> dict[str, Held]:
    """Read the attributes of a model, its seeds, its optimizer and its scheduler. Values in the state dicts of
    optimizer and scheduler are left out.

    Parameters in an optimizer's groups are read as their names.

    Args:
        parts: Objects by name; see `GrownHost.parts`.
        changing: Paths to leave out.
    """
    model = parts["task.model"]
    assert isinstance(model, nn.Module), "a host is a module"
    networks = {field: part for field, part in parts.items() if isinstance(part, nn.Module)}
    names = {id(one): name for name, one in model.named_parameters()}
    marks: dict[int, Leaf | None] = {id(part): Leaf(field, 0) for field, part in parts.items()}
    for part in networks.values():
        for module in part.modules():
            registered = (*module._parameters.values(), *module._buffers.values())
            marks.update((id(tensor), None) for tensor in registered if tensor is not None)
    found = {field: held_by(part, marks, skip=_at(changing, field)) for field, part in networks.items()}
    marks |= {key: Leaf("Parameter", hash(name)) for key, name in names.items()}
    for field in parts.keys() - found.keys():
        held = {name: value for name, value in vars(parts[field]).items() if name != "state"}
        if "param_groups" in held:
            held["param_groups"] = [group["params"] for group in held["param_groups"]]
        found[field] = held_by(SimpleNamespace(**held), marks, skip=_at(changing, field))
    return found


class Surroundings:
    """Objects that all networks of a process share: data sets, the user's modules and classes, the task's functions."""

    def __init__(self, task: Task, data: TaskData, kinds: Collection[type] = ()) -> None:
        self._task, self._kinds, self._modules = task, list(kinds), reached_by(task)
        self._sets: dict[str, object] = {}
        for name, shard in data.shards.items():
            if not any(shard.samples is other for other in self._sets.values()):
                self._sets[f"task.{name}"] = shard.samples

    def meet(self, objects: Iterable[object]) -> None:
        """Add the classes of objects to the classes that are read. A seed may bring a new class."""
        self._kinds = list(dict.fromkeys((*self._kinds, *kinds_of(*objects))))

    def held(self, changing: Changing) -> dict[str, Held]:
        """Read the present values of all objects."""
        return {**self.code(), **self.data(changing)}

    def code(self) -> dict[str, Held]:
        """Read the present values of functions, classes and modules."""
        return shared_by(self._task, self._kinds, self._modules)

    def data(self, changing: Changing) -> dict[str, Held]:
        """Read the present values of the data sets."""
        sets = self._sets.items()
        return {field: held_by(one, skip=_at(changing, field), limits=DATA_LIMITS) for field, one in sets}

    def check_data(self, before: Mapping[str, Held], changing: Changing) -> None:
        """Compare the data sets with earlier values, except the paths in `changing`.

        Raises:
            TaskError: a data set has changed. The error names the data set and the first changed path.
        """
        for field, paths in suspects_in(before, self.data({}), changing).items():
            why = "drawing many samples changes it, and no checkpoint saves it"
            raise TaskError(field, path_in_words(paths[0]), f"{why}: {mend_of(field, paths[0], before[field])}")


def changed_between(before: Mapping[str, Held], after: Mapping[str, Held]) -> Changing:
    """Return field -> paths with different values, for the fields that both sides have."""
    return {field: frozenset(different(held, after[field])) for field, held in before.items() if field in after}


def _at(changing: Changing, field: str) -> frozenset[str]:
    return changing.get(field, frozenset())


def joined(*parts: Changing) -> Changing:
    """Return the union of several mappings of changed paths."""
    fields = {field for part in parts for field in part}
    return {field: frozenset().union(*(_at(part, field) for part in parts)) for field in fields}


def suspects_in(before: Mapping[str, Held], after: Mapping[str, Held], changing: Changing) -> dict[str, list[str]]:
    """Return field -> paths with different values, except those in `changing`. Both sides must have the same fields."""
    found = {}
    for field, held in before.items():
        if held != after[field]:
            paths = different(held, after[field])
            if max(len(held), len(after[field])) >= (DATA_LIMITS.values if field in _DATA else MOST):
                # values beyond the limit were not read, so a path may be missing on one side
                paths = [path for path in paths if path in held and path in after[field]]
            found[field] = [path for path in paths if not _is_allowed(path, _at(changing, field))]
    return {field: _without_root(paths) for field, paths in found.items() if paths}


def _without_root(paths: list[str]) -> list[str]:
    """If there are paths of parts of an object, drop the path of the whole object."""
    return [path for path in paths if path] or paths


# -- comparing ---------------------------------------------------------------------------------------------------


class Unkept:
    """Finds changes of a live host's state that no checkpoint stores. It must be created before the first step."""

    def __init__(self, task: Task, data: TaskData, trainer: Trainer, changing: Changing) -> None:
        self._trainer, self._changing = trainer, dict(changing)
        self._built = build_of(trainer.host)
        samples = [shard.samples for shard in data.shards.values()]
        self._around = Surroundings(task, data, kinds_of(*trainer.parts().values(), *samples))
        self._parts = of_parts(trainer.parts(), self._changing)
        self._data, self._code = self._around.data(self._changing), dict[str, Held]()
        self._first_step = trainer.step

    def begin_round(self) -> None:
        """Read the user's modules again. Between rounds, the user's progress display or policy may change them.

        A new seed is read for the first time.
        """
        parts = self._trainer.parts()
        if parts.keys() != self._parts.keys():
            self._around.meet(parts.values())
            self._parts = of_parts(parts, self._changing) | {
                field: held for field, held in self._parts.items() if field in parts
            }
        self._code = self._around.code()
        self._first_step = self._trainer.step

    def check(self, fence: int) -> None:
        """Compare all state at the end of a round.

        Registered modules and tensors are compared first, because `_confirm` cannot load a snapshot if they changed.

        Raises:
            StateNotKept: state that no checkpoint stores has changed. The error names the first change.
            EmergencyStop: see `_confirm`.
        """
        for name, mend in rebuilt(self._built, build_of(self._trainer.host)):
            raise StateNotKept("task.model", name, fence, mend)
        for field, path, held in self._shared_changed():
            raise _not_kept(field, path, fence, held)
        now = of_parts(self._trainer.parts(), self._changing)
        if suspects := suspects_in(self._parts, now, self._changing):
            self._confirm(suspects, fence)

    def _shared_changed(self) -> Iterator[tuple[str, str, Held]]:
        """Yield (field, path, present values of the field) of each change in shared code and data.

        Changes of logs are left out.
        """
        now = self._around.held(self._changing)
        held = {**self._code, **self._data}
        for field, paths in suspects_in(held, now, self._changing).items():
            before, after = held[field], now[field]
            logs = [path for path in after if field not in OBJECTS and _is_log(path, before, after)]
            yield from ((field, path, after) for path in paths if not any(_is_within(path, log) for log in logs))

    def _confirm(self, suspects: Mapping[str, list[str]], fence: int) -> None:
        """Load a snapshot of this host into a new host, and refuse each suspect that differs between the two hosts. A
        suspect is a changed attribute.

        If a suspect is equal in both hosts, the user's code saves it. If a suspect is a cache, it becomes equal after
        both hosts have seen the same batches. A cache is not refused if both hosts had the same loss on each of these
        batches.

        Raises:
            StateNotKept: a suspect differs. The error names the first suspect.
            EmergencyStop: an emergency has stopped the run. This is checked before each batch, because the comparison
                may take as long as the forward passes of four rounds.
        """
        try:
            other = self._trainer.another()
        except DependencyViolationError as error:
            field, path = next((field, paths[0]) for field, paths in suspects.items())
            raise _not_kept(field, path, fence, self._parts[field]) from error
        hosts = (self._trainer, other)
        apart = self._still_different(suspects, *hosts)
        for look in self._comparisons():
            self._trainer.check_emergency()
            if not any(apart.values()) or held_by(look(hosts[0])) != held_by(look(hosts[1])):
                break
            apart = self._still_different(suspects, *hosts)
        for field, paths in apart.items():
            for path in paths:
                raise _not_kept(field, path, fence, self._parts[field], of_parts(hosts[0].parts(), {})[field])
        for field, paths in suspects.items():
            self._changing[field] = _at(self._changing, field) | frozenset(paths)
        self._parts = of_parts(self._trainer.parts(), self._changing)

    def _comparisons(self) -> Iterator[Callable[[Trainer], object]]:
        """Yield forward passes for both hosts: on the next batch, on the batches of the round, and on task.test.

        The attribute was changed by a batch of the round, or by a batch of the evaluation at the start of the run. The
        attribute counts as a cache of seen data if the new host computes the same value from the same batches, and no
        loss differed before. An example is a table for each input length.
        """
        for step in (self._trainer.step, *range(self._first_step, self._trainer.step)):
            yield partial(_glance, step=step)
        yield methodcaller("shard_means", "test")

    def _still_different(self, suspects: Mapping[str, list[str]], one: Trainer, other: Trainer) -> dict[str, list[str]]:
        """Return the suspects with different values in two hosts."""
        found = [of_parts(host.parts(), self._changing) for host in (one, other)]
        apart = {field: set(different(found[0][field], found[1][field])) for field in suspects}
        return {field: [path for path in paths if path in apart[field]] for field, paths in suspects.items()}


def _glance(host: Trainer, step: int) -> tuple[object, object]:
    return host.glance(step), host.glance_evaluating(step)


@dataclass(frozen=True)
class _Registered:
    """One submodule, parameter or buffer of a model."""

    which: object
    """The module or parameter itself. For a buffer, its shape and dtype are used, because a forward may replace the
    buffer."""
    state: object
    """For a module, its class. For a parameter, whether it is trained. For a buffer, None."""
    mend: str
    """Advice for the error message if the object was replaced."""


Build = Mapping[str, _Registered]


def build_of(model: nn.Module) -> Build:
    """Return path -> module, parameter or buffer that is registered at the path."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        found[path or "the model"] = _Registered(module, type(module), FACTORY_MEND)
        for name, one in module._parameters.items():
            found[prefix + name] = _Registered(one, one is not None and one.requires_grad, FACTORY_MEND)
        for name, tensor in module._buffers.items():
            kind = None if tensor is None else (tensor.shape, tensor.dtype)
            found[prefix + name] = _Registered(kind, None, KIND_MEND)
    return found


def rebuilt(before: Build, after: Build) -> Iterator[tuple[str, str]]:
    """Yield (path, mend) of each registered object that was added, deleted, replaced, frozen or unfrozen."""
    yield from ((name, FACTORY_MEND) for name in after if name not in before)
    yield from ((name, FACTORY_MEND) for name in before if name not in after)
    for name, one in after.items():
        other = before[name]
        if one.which is not other.which and (isinstance(one.which, nn.Module | Tensor) or one.which != other.which):
            yield name, other.mend
        elif one.state is not other.state:
            yield (f"requires_grad of {name}", FLAG_MEND) if isinstance(one.state, bool) else (name, FACTORY_MEND)


def _not_kept(field: str, path: str, fence: int, *moments: Held) -> StateNotKept:
    return StateNotKept(field, path_in_words(path), fence, mend_of(field, path, *moments))


def _is_allowed(path: str, vetted: frozenset[str]) -> bool:
    """Return whether a path may change. Modes may change, because each round sets them.

    A path also may change if it lies within a path in `vetted`.
    """
    return path.endswith(".training") or path in vetted or any(_is_within(path, other) for other in vetted)


def _is_within(path: str, outer: str) -> bool:
    return path == outer or (path.startswith(outer) and path[len(outer)] in ".[")


def _is_log(path: str, before: Held, after: Held) -> bool:
    """Return whether a shared container is a log: a container that only grew, or a full deque."""
    if path not in before or after[path].kind not in GROWING:
        return False
    return before[path].length < after[path].length or after[path].kind == "full deque"
