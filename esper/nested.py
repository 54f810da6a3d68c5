"""Batches as users nest them: tensors in tuples, lists, mappings and dataclasses of any class."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:  # Any: a batch is whatever the user's model takes
    """`value` with every tensor in it replaced by `change` of it; of the same classes, and all else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        items = {key: mapped(change, item) for key, item in value.items()}
        return items if type(value) is dict or not isinstance(value, MutableMapping) else _filled(value, items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(change, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(change, item) for item in value)
    if _is_record(value):
        found = copy.copy(value)
        for part in dataclasses.fields(value):
            object.__setattr__(found, part.name, mapped(change, getattr(value, part.name)))  # it may be frozen
        return found
    return value


def tensors(value: Any) -> Iterator[Tensor]:  # Any: see `mapped`
    """Every tensor that `mapped` would reach, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(item)
    elif _is_record(value):
        for part in dataclasses.fields(value):
            yield from tensors(getattr(value, part.name))


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _filled(shape: MutableMapping[Any, Any], items: Mapping[Any, Any]) -> MutableMapping[Any, Any]:
    found = copy.copy(shape)
    for key, item in items.items():
        found[key] = item
    return found
