"""Functions over state dicts: nestings of dicts, lists and tuples with tensors.

Subclasses of list and tuple are not supported. Batches and outputs may have subclasses. For them there is
`esper.ground.nested`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Copies = list[tuple[Tensor, Tensor]]
"""Pairs (target, source) of tensors with equal shape and dtype."""


def copied(value: Any, each: Callable[[Tensor], Tensor]) -> Any:  # Any: a value of a state dict
    """Return a copy of a nesting in which `each(tensor)` replaces every tensor."""
    if isinstance(value, Tensor):
        return each(value)
    if isinstance(value, dict):
        return _filled(value, {key: copied(item, each) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(copied(item, each) for item in value)
    return _leaf(value)


def tensors_of_state(value: Any) -> list[Tensor]:  # Any: see `copied`
    """Return all tensors of a nesting, in the order of the nesting."""
    if isinstance(value, Tensor):
        return [value]
    items: Iterable[Any] = value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ()
    return [tensor for item in items for tensor in tensors_of_state(item)]


def laid_over(stored: Any, live: Any, copies: Copies) -> Any:  # Any: see `copied`
    """Return a copy of `stored` for `load_state_dict`. The copy shares no memory with `stored`.

    At each path the copy has the tensor of `live` if shape and dtype are equal, else a clone of the stored tensor. So
    the memory of `live` is reused. The values of `stored` are not yet in the tensors of `live`: the caller must pass
    `copies` to `copy_all`.

    Args:
        stored: The state to load.
        live: The present state, whose tensors may be overwritten.
        copies: List to which the pairs (tensor of `live`, tensor of `stored`) are appended.
    """
    if isinstance(stored, Tensor):
        if isinstance(live, Tensor) and kind_of(live) == kind_of(stored):
            copies.append((live, stored))
            return live
        return stored.clone()
    if isinstance(stored, dict):
        beside = live if isinstance(live, dict) else {}
        return _filled(stored, {key: laid_over(item, beside.get(key), copies) for key, item in stored.items()})
    if type(stored) in (list, tuple):
        matching = live if type(live) is type(stored) and len(live) == len(stored) else [None] * len(stored)
        return type(stored)(laid_over(*pair, copies) for pair in zip(stored, matching, strict=True))
    return _leaf(stored)


def _leaf(value: Any) -> Any:  # Any: see `copied`
    return value if type(value) in (int, float, str, bool, type(None)) else copy.deepcopy(value)


def _filled(shape: Any, items: dict[Any, Any]) -> Any:  # Any: a dict, or an instance of a subclass
    """Return a dict of the same class with other items.

    `update` is not used, because a Counter would add the counts.
    """
    found = copy.copy(shape)
    for key, item in items.items():
        found[key] = item
    return found


def kind_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    """Return shape and dtype. If both are equal, one tensor can be copied into another bit for bit."""
    return tensor.shape, tensor.dtype


@torch.no_grad()
def copy_all(copies: Copies) -> None:
    """Copy every pair, with one call for all pairs of the same dtype and devices."""
    groups: dict[tuple[torch.dtype, torch.device, torch.device], Copies] = {}
    for into, source in copies:
        groups.setdefault((into.dtype, into.device, source.device), []).append((into, source))
    for group in groups.values():
        torch._foreach_copy_([into for into, _ in group], [source for _, source in group])
