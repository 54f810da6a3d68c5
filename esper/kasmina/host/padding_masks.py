"""Reads the padding of a sequence from the arguments of a slot's module. Imports only torch.

A mask is known by the name of its argument. Its forms:

- `PADDED_IF_TRUE`, the names of torch: [B, T], True at padded positions, or floating numbers that are added to the
  scores of the keys, negative at padded positions. Source: `torch.nn.MultiheadAttention`.
- `REAL_IF_TRUE`, the name of Hugging Face: [B, T], boolean or integer, 0 at padded positions; or [B, 1, Q, T] with Q of
  1 or T, False or a negative number where a query may not read a key. A key that no query may read is padded.

B is the batch, T the time or position.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

PADDED_IF_TRUE = ("src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask", "padding_mask")
REAL_IF_TRUE = ("attention_mask",)


def positional_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the arguments that the module's forward takes by position. A forward without a signature,
    such as a traced one, has none.
    """
    try:
        arguments = inspect.signature(module.forward).parameters.values()
    except ValueError:
        return ()
    return tuple(one.name for one in arguments if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))


def given_mask(names: Sequence[str], args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[str, Tensor] | None:
    """Return the padding mask in a call of a module, with the name of its argument. None: the call has no such mask.

    A `key_padding_mask` counts only if the module attends to its own sequence: `query` and `key` are the same tensor.

    Args:
        names: `positional_names` of the module.
    """
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    for name in (*PADDED_IF_TRUE, *REAL_IF_TRUE):
        mask = call.get(name)
        other = name == "key_padding_mask" and call.get("query") is not call.get("key")
        if isinstance(mask, Tensor) and not other:
            return name, mask
    return None


def is_readable(name: str, mask: Tensor, part: Tensor) -> bool:
    """Return whether a mask has a form that is known for its name; see above.

    Args:
        part: Output of the slot on which its seeds act, [B, T, C].
    """
    size, floating = tuple(part.shape[:2]), mask.is_floating_point()
    if part.dim() != 3:
        return False
    if mask.dim() == 2:
        known = floating or mask.dtype is torch.bool if name in PADDED_IF_TRUE else not floating
        return known and tuple(mask.shape) == size
    batch, time = size
    forms = ((batch, 1, 1, time), (batch, 1, time, time))
    return name in REAL_IF_TRUE and (floating or mask.dtype is torch.bool) and tuple(mask.shape) in forms


def padding_of(
    names: Sequence[str], args: Sequence[object], kwargs: Mapping[str, object], part: Tensor
) -> Tensor | None:
    """Return the padding in a call of a slot's module: new booleans [B, T], True at padded positions.

    None: the call has no padding mask, so no position is padded.

    Args:
        names, args, kwargs: See `given_mask`.
        part: See `is_readable`.

    Raises:
        ValueError: the form of the mask is not known.
    """
    found = given_mask(names, args, kwargs)
    if found is None:
        return None
    name, mask = found
    if not is_readable(name, mask, part):
        forms = "[B, T], bool or floating" if name in PADDED_IF_TRUE else "[B, T], bool or int, or [B, 1, 1 or T, T]"
        raise ValueError(
            f"{name} of shape {tuple(mask.shape)} and {mask.dtype}, for an output of shape {tuple(part.shape)}; a seed"
            f" that takes padding reads {forms}"
        )
    if mask.is_floating_point():
        return _of_keys(mask < 0)
    return _of_keys(mask != 0 if name in PADDED_IF_TRUE else mask == 0)


def _of_keys(hidden: Tensor) -> Tensor:
    """Return booleans [B, T] for [B, T] or [B, 1, Q, T]. A key that is hidden from every query is padded."""
    return hidden if hidden.dim() == 2 else hidden[:, 0].all(dim=1)
