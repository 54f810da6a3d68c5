"""Number types of slots and seeds, with and without the autocast of a host's own forward. It computes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.leyline.slots import SlotSpec


def dtype_of(spec: SlotSpec) -> torch.dtype:
    """The type of the slot's output. Raises: TypeError: the spec names none."""
    return named(spec.dtype)


def parameter_dtype(spec: SlotSpec) -> torch.dtype:
    """The type of a seed's parameters: the slot's, or single precision where autocast casts them for each product."""
    return dtype_of(spec) if spec.autocast is None else torch.float32


def named(name: str) -> torch.dtype:
    """The type of a name such as "torch.float32". Raises: TypeError: there is none."""
    dtype = getattr(torch, name.removeprefix("torch."))
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is not a dtype")
    return dtype


def autocast_at(tensor: Tensor) -> str | None:
    """The type to which autocast casts here, on the tensor's device; None: it is off."""
    device = tensor.device.type
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def as_slot(correction: Tensor, host: Tensor) -> Tensor:
    """A seed's output in the type of its slot's output, where autocast chose another one for it; else as it is."""
    if isinstance(correction, Tensor) and torch.is_autocast_enabled(host.device.type):
        return correction.to(host.dtype)
    return correction
