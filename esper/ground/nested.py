"""Functions over nested batches: tensors in tuples, lists, mappings and dataclasses of any class.

For state dicts see `esper.tolaria.trees`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:  # Any: an input of the user's model
    """Return a copy of `value`, of the same classes, in which every tensor is replaced by `change(tensor)`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return _mapping(value, {key: mapped(change, item) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(change, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(change, item) for item in value)
    if _is_record(value):
        return _record(value, lambda name: mapped(change, getattr(value, name)))
    return value


def tensors(value: Any) -> Iterator[Tensor]:  # Any: see `mapped`
    """Yield every tensor that `mapped` would replace, in the same order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(item)
    elif _is_record(value):
        for part in dataclasses.fields(value):
            yield from tensors(getattr(value, part.name))


def joined(values: Sequence[Any]) -> Any:  # Any: see `mapped`
    """Join batches of equal structure into one batch. Tensors are concatenated along their first dimension.

    Raises:
        ValueError: the structures differ, or the tensors differ beyond the first dimension.
    """
    first = values[0]
    if isinstance(first, Tensor):
        shapes = {tuple(value.shape[1:]) if value.dim() else None for value in values}
        if len(shapes) > 1 or None in shapes:
            raise ValueError(f"tensors of {len(shapes)} shapes cannot be joined: {[tuple(v.shape) for v in values]}")
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return _mapping(first, {key: joined([value[key] for value in values]) for key in first})
    if _is_record(first):
        return _record(first, lambda name: joined([getattr(value, name) for value in values]))
    if isinstance(first, tuple | list):
        items = [joined(part) for part in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    if all(value is first or value == first for value in values):
        return first
    raise ValueError(f"a {type(first).__name__} cannot be joined")


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _record(shape: Any, part: Callable[[str], Any]) -> Any:  # Any: a dataclass of any class
    """Return a copy of a dataclass instance with the given fields replaced."""
    found = copy.copy(shape)
    for field in dataclasses.fields(shape):
        object.__setattr__(found, field.name, part(field.name))  # it may be frozen
    return found


def _mapping(shape: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the same class with the given items. If that class has no item assignment, return a dict."""
    if type(shape) is dict or not isinstance(shape, MutableMapping):
        return items
    found = copy.copy(shape)
    for key, item in items.items():
        found[key] = item
    return found
