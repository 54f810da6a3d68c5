"""Finds the tensors of the host that a seed reaches by its gradient, shares, or changes in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def reachable_parameters(branch: Tensor, parameters: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """Return the names of the parameters whose gradient a backward pass from `branch` would change.

    The result is exact, because the search follows the same edges of the graph as `backward`.

    Args:
        branch: Output of a seed, with its autograd graph.
        parameters: Parameters to look for, by name.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: set[str] = set()
    seen: set[object] = set()
    stack = [branch.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = node.variable if hasattr(node, "variable") else None  # only AccumulateGrad, the end of a path, has it
        if leaf is not None and id(leaf) in names:
            found.add(names[id(leaf)])
        stack.extend(following for following, _ in node.next_functions)
    if branch.is_leaf and id(branch) in names:
        found.add(names[id(branch)])
    return tuple(sorted(found))


def sharing_memory(own: Iterable[Tensor], foreign: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the foreign tensors that share memory with an own tensor.

    The autograd graph does not show shared memory: two parameters over the same memory are two leaves.
    """
    places = {_place(tensor) for tensor in own if tensor.numel()}
    return tuple(sorted(name for name, tensor in foreign.items() if tensor.numel() and _place(tensor) in places))


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def versions(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of changes in place of each tensor, by name."""
    return {name: tensor._version for name, tensor in tensors.items() if not tensor.is_inference()}
