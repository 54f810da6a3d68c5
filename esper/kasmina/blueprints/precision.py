"""Dtypes of slots and seeds, with and without autocast in the host's forward."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.leyline.slots import SlotSpec


def dtype_of(spec: SlotSpec) -> torch.dtype:
    """Return the dtype of the slot's output. Raises: TypeError: the spec names no dtype."""
    return named(spec.dtype)


def parameter_dtype(spec: SlotSpec) -> torch.dtype:
    """Return the dtype of a seed's parameters: float32 if the slot runs under autocast, else the dtype of the slot."""
    return dtype_of(spec) if spec.autocast is None else torch.float32


def named(name: str) -> torch.dtype:
    """Return the dtype with a name such as "torch.float32". Raises: TypeError: no dtype has the name."""
    dtype = getattr(torch, name.removeprefix("torch."))
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is not a dtype")
    return dtype


def autocast_at(tensor: Tensor) -> str | None:
    """Return the name of the dtype to which autocast casts on the tensor's device. None: autocast is off."""
    device = tensor.device.type
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def as_slot(correction: Tensor, host: Tensor) -> Tensor:
    """Return a seed's output. Under autocast, convert it to the dtype of the slot's output."""
    if isinstance(correction, Tensor) and torch.is_autocast_enabled(host.device.type):
        return correction.to(host.dtype)
    return correction
