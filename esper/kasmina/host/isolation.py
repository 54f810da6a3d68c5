"""Finds parameters that a seed's gradient reaches, memory that a seed shares, and changes that its call makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from esper.user_code.attributes import Held, Leaf, Limits, held_by, path_in_words

WHOLE = Limits(values=2**40, whole_bytes=2**60)
"""Limits that are never reached, so that every tensor is read whole."""


def reachable_parameters(
    branch: Tensor, parameters: Mapping[str, nn.Parameter], cut: Node | None = None
) -> tuple[str, ...]:
    """Return the names of the parameters whose gradient a backward pass from `branch` would change.

    The result is exact, because the search follows the same edges of the graph as `backward`.

    Args:
        branch: Output of a seed, with its autograd graph.
        parameters: Parameters to look for, by name.
        cut: Node at which the search stops: the input of a seed that is not isolated.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    return tuple(sorted({names[id(leaf)] for leaf in leaves_of(branch, cut) if id(leaf) in names}))


def strange_parameters(
    branch: Tensor, own: Iterable[Tensor], named: Mapping[str, Tensor], cut: Node | None = None
) -> tuple[str, ...]:
    """Return the parameters that a backward pass from `branch` would reach, without those in `own` and `named`.

    Examples: a parameter of another host, or a parameter that the seed uses without registering it.
    """
    known = {id(tensor) for tensor in (*own, *named.values())}
    strange = [leaf for leaf in leaves_of(branch, cut) if isinstance(leaf, nn.Parameter) and id(leaf) not in known]
    return tuple(f"a parameter outside the seed and its host, of shape {tuple(leaf.shape)}" for leaf in strange)


def leaves_of(branch: Tensor, cut: Node | None = None) -> Iterator[Tensor]:
    """Yield each tensor whose gradient a backward pass from `branch` would change, except tensors behind `cut`."""
    seen: set[object] = {cut}
    stack = [branch.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # only the end of a path, AccumulateGrad, has this attribute
            yield node.variable
        stack.extend(following for following, _ in node.next_functions)
    if branch.is_leaf and branch.requires_grad:
        yield branch


def sharing_memory(own: Iterable[Tensor], foreign: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors in `foreign` that share memory with a tensor in `own`.

    The autograd graph does not show shared memory, because two parameters with the same memory are two leaves.
    """
    places = {_place(tensor) for tensor in own if tensor.numel()}
    return tuple(sorted(name for name, tensor in foreign.items() if tensor.numel() and _place(tensor) in places))


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def record_of(host: nn.Module, seeds: Mapping[str, Tensor], batch: object) -> Held:
    """Return the digests of everything that the call of a seed must not change, by name.

    The record has the batch, and the attributes, modes and hooks of the host's modules. Of the tensors of the host and
    of other seeds, it has the values, gradients, hooks and `requires_grad`. It contains digests of values, so a change
    through `Tensor.data` or numpy is found, too.

    Args:
        seeds: The tensors of the other seeds, by name.
        batch: Input of the host in this step. None: the host has no input now.
    """
    tensors = {**dict(host.named_parameters()), **dict(host.named_buffers()), **seeds}
    gradients = {f"{name}.grad": tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
    found = held_by(host, {id(tensor): None for tensor in tensors.values()})
    found |= held_by({"the batch": batch, **tensors, **gradients}, limits=WHOLE)
    found = {path_in_words(path): leaf for path, leaf in found.items() if path}
    return found | {name: _with_flags(found[name], tensor) for name, tensor in tensors.items()}


def _with_flags(leaf: Leaf, tensor: Tensor) -> Leaf:
    """Return the digest of a tensor's values, identity, `requires_grad` and hooks, and of its changes in place."""
    version = None if tensor.is_inference() else tensor._version
    hooks = tuple(tensor._backward_hooks or ()), tuple(tensor._post_accumulate_grad_hooks or ())
    return leaf._replace(digest=hash((leaf.digest, id(tensor), tensor.requires_grad, version, hooks)))
