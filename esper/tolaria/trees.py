"""Nested dicts, lists and tuples with tensors in them: walked, copied, laid over one another. It knows no optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

Copies = list[tuple[Tensor, Tensor]]
"""Pairs (into, from) of one shape and type each."""


def mapped(value: Any, each: Callable[[Tensor], Tensor]) -> Any:  # Any: whatever a state dict holds
    """The same nesting, with `each(tensor)` for every tensor and copies of all else."""
    if isinstance(value, Tensor):
        return each(value)
    if isinstance(value, dict):
        return _filled(value, {key: mapped(item, each) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(mapped(item, each) for item in value)
    return _copied(value)


def tensors_in(value: Any) -> list[Tensor]:  # Any: see `mapped`
    """All tensors of a nesting, in its order."""
    if isinstance(value, Tensor):
        return [value]
    items: Iterable[Any] = value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def joined(values: Sequence[Any]) -> Any:  # Any: see `mapped`
    """Batches of one nesting as one batch: tensors are joined along their first dimension.

    Raises:
        ValueError: they are not of one nesting, or their tensors differ beyond the first dimension.
    """
    first = values[0]
    if isinstance(first, Tensor):
        shapes = {tuple(value.shape[1:]) if value.dim() else None for value in values}
        if len(shapes) > 1 or None in shapes:
            raise ValueError(f"tensors of {len(shapes)} shapes cannot be joined: {[tuple(v.shape) for v in values]}")
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return _filled(first, {key: joined([value[key] for value in values]) for key in first})
    if is_dataclass(first) and not isinstance(first, type):
        parts = {part.name: joined([getattr(value, part.name) for value in values]) for part in fields(first)}
        return replace(first, **parts)
    if isinstance(first, tuple | list):
        items = [joined(part) for part in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    if all(value is first or value == first for value in values):
        return first
    raise ValueError(f"a {type(first).__name__} cannot be joined")


def laid_over(kept: Any, live: Any, copies: Copies) -> Any:  # Any: see `mapped`
    """`kept` again, in memory that is not its own: `live`'s tensor where that is of the same kind, else a new one.

    Args:
        copies: What is still to be copied for the result to hold what `kept` holds is added here.
    """
    if isinstance(kept, Tensor):
        if isinstance(live, Tensor) and kind_of(live) == kind_of(kept):
            copies.append((live, kept))
            return live
        return kept.clone()
    if isinstance(kept, dict):
        beside = live if isinstance(live, dict) else {}
        return _filled(kept, {key: laid_over(item, beside.get(key), copies) for key, item in kept.items()})
    if type(kept) in (list, tuple):
        matching = live if type(live) is type(kept) and len(live) == len(kept) else [None] * len(kept)
        return type(kept)(laid_over(*pair, copies) for pair in zip(kept, matching, strict=True))
    return _copied(kept)


def _copied(value: Any) -> Any:  # Any: see `mapped`
    return value if type(value) in (int, float, str, bool, type(None)) else copy.deepcopy(value)


def _filled(shape: Any, items: dict[Any, Any]) -> Any:  # Any: a dict of whatever class
    """A dict of the same class with other items; a Counter's `update` would add to what is there."""
    found = copy.copy(shape)
    for key, item in items.items():
        found[key] = item
    return found


def kind_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    """What must be equal for one tensor to be copied into another bit for bit."""
    return tensor.shape, tensor.dtype


@torch.no_grad()
def copy_all(copies: Copies) -> None:
    """Copy every pair, those of one type and device in one call."""
    groups: dict[tuple[torch.dtype, torch.device, torch.device], Copies] = {}
    for into, source in copies:
        groups.setdefault((into.dtype, into.device, source.device), []).append((into, source))
    for group in groups.values():
        torch._foreach_copy_([into for into, _ in group], [source for _, source in group])
