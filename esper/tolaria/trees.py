"""State dicts, which hold tensors in dicts, lists and tuples of those types exactly: walked, copied, laid over.

What users batch and return is of other classes too: `esper.ground.nested`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Copies = list[tuple[Tensor, Tensor]]
"""Pairs (into, from) of one shape and type each."""


def copied(value: Any, each: Callable[[Tensor], Tensor]) -> Any:  # Any: whatever a state dict holds
    """The same nesting, with `each(tensor)` for every tensor and copies of all else."""
    if isinstance(value, Tensor):
        return each(value)
    if isinstance(value, dict):
        return _filled(value, {key: copied(item, each) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(copied(item, each) for item in value)
    return _leaf(value)


def tensors_of_state(value: Any) -> list[Tensor]:  # Any: see `copied`
    """All tensors of a nesting, in its order."""
    if isinstance(value, Tensor):
        return [value]
    items: Iterable[Any] = value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ()
    return [tensor for item in items for tensor in tensors_of_state(item)]


def laid_over(kept: Any, live: Any, copies: Copies) -> Any:  # Any: see `copied`
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
    return _leaf(kept)


def _leaf(value: Any) -> Any:  # Any: see `copied`
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
