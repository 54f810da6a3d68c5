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


class Untouched:
    """What a seed's call must not change: the values of tensors, and facts of the host beside them.

    Values are compared too, because a change through `tensor.data` or through numpy does not raise a tensor's version.
    """

    def __init__(self, tensors: Mapping[str, Tensor], host: nn.Module) -> None:
        """Copy the tensors. Call it before the seed's call."""
        self._tensors, self._host = tensors, host
        self._copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._versions = _versions(tensors)
        self._facts = _facts(host)

    def changed(self) -> tuple[str, ...]:
        """Return the names of what has changed since."""
        versions = _versions(self._tensors)
        written = [
            name
            for name, copy in self._copies.items()
            if versions.get(name) != self._versions.get(name) or not _same_bits(copy, self._tensors[name])
        ]
        facts = _facts(self._host)
        return (*written, *sorted(name for name, fact in self._facts.items() if facts.get(name) != fact))


def _versions(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: tensor._version for name, tensor in tensors.items() if not tensor.is_inference()}


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.layout is not torch.strided or one.numel() != other.numel():
        return torch.equal(one, other)
    left, right = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(left, right)


def _facts(host: nn.Module) -> dict[str, object]:
    """Return the training mode of each module; and of each parameter its hooks, flag and present gradient."""
    found: dict[str, object] = {f"mode of {name}": module.training for name, module in host.named_modules()}
    for name, parameter in host.named_parameters():
        grad = parameter.grad
        found |= {
            f"hooks of {name}": len(parameter._backward_hooks or ()),
            f"requires_grad of {name}": parameter.requires_grad,
            f"gradient of {name}": None if grad is None else (id(grad), grad._version),
        }
    return found
