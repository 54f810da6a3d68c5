"""Advice for state that no checkpoint saves.

The advice depends on the object that has the state, and on the kind of the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from esper.user_code.attributes import Held

FACTORY_MEND = "make it in the factory, with its final value; a value that must change may be a buffer"
_OF_TORCH = re.compile(r"(^|\.)(_\w+_hooks|_non_persistent_buffers_set|param_groups)($|[.[])")
"""Attributes in which torch stores hooks, the names of unsaved buffers, and the parameter groups of an optimizer."""

SEED = "blueprint "
"""First part of the name of an object that is a seed."""

_ITERATOR = ".<state "
"""Text in the path of an iterator's state; see `esper.user_code.attributes`."""
_KINDS = {
    "generator": {"generator"},
    "tensor": {"Tensor", "ndarray"},
    "value": {"int", "float", "bool", "complex", "str", "NoneType"},
    "cache": {"lru_cache"},
    "container": {"dict", "list", "set", "tuple", "deque", "full deque"},
}
"""Kind in the tables below -> the values of `Leaf.kind` that belong to the kind."""

_EACH = {
    "iterator": "an iterator cannot be saved: count the steps in a buffer and compute the item from that number",
    "generator": "draw from the seeded global generators (torch.rand without generator=, random, numpy.random)",
}
_OF_A_MODEL = {
    **_EACH,
    "tensor": "register it as a buffer, or compute it again in each forward",
    "value": "count the steps in a buffer and compute the value from that in each forward, or return it from "
    "get_extra_state and put it back in set_extra_state",
    "container": "register its tensors as buffers; return its other values from get_extra_state",
    "other": "register it as a buffer, or return it from get_extra_state",
}
_OF_A_DATA_SET = {
    "generator": f"{_EACH['generator']}, or give the data set state_dict and load_state_dict",
    "other": "give the data set state_dict and load_state_dict",
}
OBJECTS = {
    "task.model": _OF_A_MODEL,
    "task.optimizer": {
        "generator": _EACH["generator"],
        "other": "keep it in `state` or in the values of `param_groups`; or return it from state_dict and load it",
    },
    "task.scheduler": {
        "generator": _EACH["generator"],
        "other": "return it from state_dict and load it in load_state_dict",
    },
    **dict.fromkeys((f"task.{name}" for name in ("train", "valid", "test", "pick", "gate")), _OF_A_DATA_SET),
}
"""Field of a task -> kind of value -> advice for state in the field's object."""
_SHARED = {
    **_EACH,
    "cache": "call it with these arguments once in the factory, or when the module is imported",
    "container": "put the entry in when the module is imported, or in the factory; what training changes may be a "
    "buffer of the model, and a log may be a list or set that only grows",
    "other": "set it before the first step (when the module is imported, or in the factory), or keep it in the model, "
    "as a buffer; a log may be a list or set that only grows",
}
_EVERY_CALL = {
    **_EACH,
    "other": "draw from the seeded global generators, or keep it in the model as a buffer; a log may be a list or set "
    "that only grows",
}
_WHY_SHARED = "all networks share it, and a resumed run begins without the change"


def mend_of(holder: str, path: str, *moments: Held) -> str:
    """Return the advice for an attribute that changes and that no checkpoint saves.

    Args:
        holder: Field of the task whose object has the attribute, or a seed. Any other name means shared state.
        path: Path of the attribute in that object.
        moments: Digests of the object at several times. The first of them that has the path determines the kind of the
            value.
    """
    if holder.startswith(SEED):
        holder = "task.model"  # a seed is a module, too
    if holder not in OBJECTS:
        return f"{_WHY_SHARED}: {_of_kind(_SHARED, path, moments)}"
    return FACTORY_MEND if _OF_TORCH.search(path) else _of_kind(OBJECTS[holder], path, moments)


def shared_mend_of(path: str, held: Held) -> str:
    """Return the advice for state that all networks share and that every call changes."""
    return _of_kind(_EVERY_CALL, path, [held])


def _of_kind(mends: Mapping[str, str], path: str, moments: Iterable[Held]) -> str:
    kind = _kind(path, moments)
    return mends[kind] if kind in mends else mends["other"]


def _kind(path: str, moments: Iterable[Held]) -> str:
    """Return the kind of a value. The kinds are keys of the tables above."""
    if _ITERATOR in path:
        return "iterator"
    there = next((held[path].kind for held in moments if path in held), None)
    return next((kind for kind, names in _KINDS.items() if there in names), "other")
