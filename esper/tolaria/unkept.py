"""What a run has and no checkpoint keeps, compared at each fence with what it was before the first step.

The survey has refused what its own steps changed (`setup/rehearsal.py`). This finds what changes for the first time
later: before the fence is committed, so that no checkpoint is written that cannot be restored to the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
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
"""By field or module: paths at which the survey's own steps changed something, which it found to be no state."""

DATA_LIMITS = Limits(values=1_000, whole_bytes=2**20)
"""A data set may hold millions of samples: its first values are read, and pieces of its arrays."""

KIND_MEND = "give it its final shape and type in the factory; a table that grows with its input, for the longest input"
FLAG_MEND = "freeze and unfreeze in the factory; the optimizer has the parameters that are trainable there"
_DATA = frozenset(f"task.{name}" for name in SHARD_NAMES)
GROWING = frozenset({"list", "deque", "full deque", "set"})
"""Containers that, where copies share them, are taken for logs as long as they only grow."""


# -- reading -----------------------------------------------------------------------------------------------------


def of_parts(parts: Mapping[str, object], changing: Changing) -> dict[str, Held]:
    """Attributes of a model, its optimizer and its scheduler, without what `state_dict` of the last two returns.

    Parameters of an optimizer's groups stand under their names.

    Args:
        parts: By the field of the task that made them; see `GrownHost.parts`.
    """
    model = parts["task.model"]
    assert isinstance(model, nn.Module), "a host is a module"
    names = {id(one): name for name, one in model.named_parameters()}
    marks: dict[int, Leaf | None] = {
        **{id(part): Leaf(field, 0) for field, part in parts.items()},
        **{id(buffer): None for buffer in model.buffers()},
        **dict.fromkeys(names),
    }
    found = {"task.model": held_by(model, marks, skip=_at(changing, "task.model"))}
    marks |= {key: Leaf("Parameter", hash(name)) for key, name in names.items()}
    for field in parts.keys() - found.keys():
        held = {name: value for name, value in vars(parts[field]).items() if name != "state"}
        if "param_groups" in held:
            held["param_groups"] = [group["params"] for group in held["param_groups"]]
        found[field] = held_by(SimpleNamespace(**held), marks, skip=_at(changing, field))
    return found


class Surroundings:
    """What all networks of a process share: the data sets, the user's modules and classes, the task's functions."""

    def __init__(self, task: Task, data: TaskData, kinds: Collection[type] = ()) -> None:
        self._task, self._kinds, self._modules = task, kinds, reached_by(task)
        self._sets: dict[str, object] = {}
        for name, shard in data.shards.items():
            if not any(shard.samples is other for other in self._sets.values()):
                self._sets[f"task.{name}"] = shard.samples

    def held(self, changing: Changing) -> dict[str, Held]:
        """What they hold now."""
        return {**self.code(), **self.data(changing)}

    def code(self) -> dict[str, Held]:
        """What functions, classes and modules hold now."""
        return shared_by(self._task, self._kinds, self._modules)

    def data(self, changing: Changing) -> dict[str, Held]:
        """What the data sets hold now."""
        sets = self._sets.items()
        return {field: held_by(one, skip=_at(changing, field), limits=DATA_LIMITS) for field, one in sets}

    def check_data(self, before: Mapping[str, Held], changing: Changing) -> None:
        """Compare the data sets with what they held, apart from what `changing` names.

        Raises:
            TaskError: training or measuring has changed one.
        """
        for field, paths in suspects_in(before, self.data({}), changing).items():
            why = "drawing many samples changes it and no checkpoint keeps it"
            raise TaskError(field, path_in_words(paths[0]), f"{why}: {mend_of(field, paths[0], before[field])}")


def changed_between(before: Mapping[str, Held], after: Mapping[str, Held]) -> Changing:
    """By field: paths at which something else is held. Fields that only one of the two has are left out."""
    return {field: frozenset(different(held, after[field])) for field, held in before.items() if field in after}


def _at(changing: Changing, field: str) -> frozenset[str]:
    return changing.get(field, frozenset())


def joined(*parts: Changing) -> Changing:
    """All that one of them has."""
    fields = {field for part in parts for field in part}
    return {field: frozenset().union(*(_at(part, field) for part in parts)) for field in fields}


def suspects_in(before: Mapping[str, Held], after: Mapping[str, Held], changing: Changing) -> dict[str, list[str]]:
    """By field: paths at which something else is held now, apart from those in `changing`. Every field is in both."""
    found = {}
    for field, held in before.items():
        if held != after[field]:
            paths = different(held, after[field])
            if max(len(held), len(after[field])) >= (DATA_LIMITS.values if field in _DATA else MOST):
                paths = [path for path in paths if path in held and path in after[field]]  # where reading ended
            found[field] = [path for path in paths if not _is_vetted(path, _at(changing, field))]
    return {field: _named(paths) for field, paths in found.items() if paths}


def _named(paths: list[str]) -> list[str]:
    """Without the path of a whole module or object, where the new or missing part of it has a path, too."""
    return [path for path in paths if path] or paths


# -- comparing ---------------------------------------------------------------------------------------------------


class Unkept:
    """Watches one live host, which has not begun to train."""

    def __init__(self, task: Task, data: TaskData, trainer: Trainer, changing: Changing) -> None:
        self._trainer, self._changing = trainer, dict(changing)
        self._built = build_of(trainer.host)
        samples = [shard.samples for shard in data.shards.values()]
        self._around = Surroundings(task, data, kinds_of(*trainer.parts().values(), *samples))
        self._parts = of_parts(trainer.parts(), self._changing)
        self._data, self._code = self._around.data(self._changing), dict[str, Held]()
        self._first_step = trainer.step

    def begin_round(self) -> None:
        """Read the user's modules. Between rounds a progress display or a policy of hers may change them."""
        self._code = self._around.code()
        self._first_step = self._trainer.step

    def check(self, fence: int) -> None:
        """Compare everything at the end of a round.

        What the host registers comes first, because without it no snapshot can be loaded.

        Raises:
            StateNotKept: something changed that no checkpoint keeps; it is named.
        """
        for name, mend in rebuilt(self._built, build_of(self._trainer.host)):
            raise StateNotKept("task.model", name, fence, mend)
        for field, path, held in self._shared_changed():
            raise _not_kept(field, path, fence, held)
        now = of_parts(self._trainer.parts(), self._changing)
        if suspects := suspects_in(self._parts, now, self._changing):
            self._confirm(suspects, fence)

    def _shared_changed(self) -> Iterator[tuple[str, str, Held]]:
        """Field and path of each change, and what the field holds now."""
        now = self._around.held(self._changing)
        held = {**self._code, **self._data}
        for field, paths in suspects_in(held, now, self._changing).items():
            before, after = held[field], now[field]
            logs = [path for path in after if field not in OBJECTS and _is_log(path, before, after)]
            yield from ((field, path, after) for path in paths if not any(_is_within(path, log) for log in logs))

    def _confirm(self, suspects: Mapping[str, list[str]], fence: int) -> None:
        """Let pass what a fresh host has, too, when it took over this one's snapshot: its own code keeps it.

        So is what is equal again after both have seen the same batches, if their losses were equal on each: a cache.

        Raises:
            StateNotKept: the rest.
            EmergencyStop: a signal stops the run; this may take the forward passes of four rounds.
        """
        try:
            other = self._trainer.another()
        except DependencyViolationError as error:
            field, path = next((field, paths[0]) for field, paths in suspects.items())
            raise _not_kept(field, path, fence, self._parts[field]) from error
        hosts = (self._trainer, other)
        apart = self._still(suspects, *hosts)
        for look in self._looks():
            self._trainer.check_emergency()
            if not any(apart.values()) or held_by(look(hosts[0])) != held_by(look(hosts[1])):
                break
            apart = self._still(suspects, *hosts)
        for field, paths in apart.items():
            for path in paths:
                raise _not_kept(field, path, fence, self._parts[field], of_parts(hosts[0].parts(), {})[field])
        for field, paths in suspects.items():
            self._changing[field] = _at(self._changing, field) | frozenset(paths)
        self._parts = of_parts(self._trainer.parts(), self._changing)

    def _looks(self) -> Iterator[Callable[[Trainer], object]]:
        """What both hosts see and give losses of: the next batch, as after a resume; those of the round; task.test.

        Something of the round, or of the evaluation at the start of the run, has changed the attribute. If it comes
        back when the other host sees that too, and if no batch before told the two apart, then it is a memo of what was
        seen: a table by length, say.
        """
        for step in (self._trainer.step, *range(self._first_step, self._trainer.step)):
            yield partial(_glance, step=step)
        yield methodcaller("shard_means", "test")

    def _still(self, suspects: Mapping[str, list[str]], one: Trainer, other: Trainer) -> dict[str, list[str]]:
        found = [of_parts(host.parts(), self._changing) for host in (one, other)]
        apart = {field: set(different(found[0][field], found[1][field])) for field in suspects}
        return {field: [path for path in paths if path in apart[field]] for field, paths in suspects.items()}


def _glance(host: Trainer, step: int) -> tuple[object, object]:
    return host.glance(step), host.glance_evaluating(step)


@dataclass(frozen=True)
class _Registered:
    """One submodule, parameter or buffer."""

    which: object
    """The module or parameter itself; of a buffer, which may be another tensor after each forward, its shape and type.
    """
    state: object
    """Of a module its class, of a parameter whether it is trained."""
    mend: str
    """What to do if another stands in its place."""


Build = Mapping[str, _Registered]


def build_of(model: nn.Module) -> Build:
    """By path: all that is registered in a model."""
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
    """Where a model is built in another way now, with what to do about it."""
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


def _is_vetted(path: str, vetted: frozenset[str]) -> bool:
    """The survey saw the path change, or something that it lies in; modes are set anew before every round."""
    return path.endswith(".training") or path in vetted or any(_is_within(path, other) for other in vetted)


def _is_within(path: str, outer: str) -> bool:
    return path == outer or (path.startswith(outer) and path[len(outer)] in ".[")


def _is_log(path: str, before: Held, after: Held) -> bool:
    """A container of those that copies share, that only grew; or a full deque, which drops an item for each new one."""
    if path not in before or after[path].kind not in GROWING:
        return False
    return before[path].length < after[path].length or after[path].kind == "full deque"
