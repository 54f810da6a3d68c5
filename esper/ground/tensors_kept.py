"""Restores parameters and buffers after forward passes that must not change a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_GROUPS = ("_parameters", "_buffers", "_modules")


@contextmanager
def tensors_kept(model: nn.Module, others: Iterable[Tensor] = ()) -> Iterator[None]:
    """At the end of the block, restore the model's submodules, parameters and buffers, with their values.

    A forward may change a parameter in place (a moving average, a codebook), register a tensor or a module, or replace
    a buffer by a tensor of another shape. If a tensor of a module was replaced or resized, the other attributes of the
    module are restored, too, because one of them may contain the length of this tensor.

    Args:
        others: Tensors outside the model whose values are restored, too.
    """
    modules = list(model.modules())
    registered = [(module, name, dict(vars(module)[name])) for module in modules for name in _GROUPS]
    attributes = [(module, _kinds(module), dict(vars(module))) for module in modules]
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *others)}
    values = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    try:
        yield
    finally:
        for module, kinds, before in attributes:
            if _kinds(module) != kinds:
                vars(module).clear()
                vars(module).update(before)
        for module, name, before in registered:
            vars(module)[name].clear()
            vars(module)[name].update(before)
        for tensor, value in values:
            _put_back(tensor, value)


def _kinds(module: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype] | None]:
    """Return shape and type of each buffer of a module, without buffers of its submodules."""
    return {name: None if one is None else (one.shape, one.dtype) for name, one in module._buffers.items()}


@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    shares_elements = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.shape == value.shape and not shares_elements:
        tensor.copy_(value)
    else:  # `resize_` changed the tensor in place, or `expand` made it
        tensor.data = value
