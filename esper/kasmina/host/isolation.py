"""Finds parameters that a seed's gradient reaches, memory that a seed shares, and changes that its call makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from esper.user_code.attributes import Held, Leaf, Limits, digest_of, held_by

WHOLE = Limits(values=2**40, whole_bytes=2**60)
"""Limits that are never reached, so that every tensor is read whole."""


Edge = tuple[Node | None, int]
"""A node of the autograd graph, and the number of one of its outputs: the origin of one tensor."""


def edge_of(tensor: Tensor) -> Edge | None:
    """Return the place of a tensor in the autograd graph. None: the tensor needs no gradient."""
    if not tensor.requires_grad:
        return None
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def reachable_parameters(
    branch: Tensor, parameters: Mapping[str, nn.Parameter], cut: Edge | None = None
) -> tuple[str, ...]:
    """Return the names of the parameters whose gradient a backward pass from `branch` would change.

    The result is exact, because the search follows the same edges of the graph as `backward`.

    Args:
        branch: Output of a seed, with its autograd graph.
        parameters: Parameters to look for, by name.
        cut: Edge at which the search stops: the input of a seed that is not isolated.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    return tuple(sorted({names[id(leaf)] for leaf in leaves_of(branch, cut) if id(leaf) in names}))


def strange_parameters(
    branch: Tensor, own: Iterable[Tensor], named: Mapping[str, Tensor], cut: Edge | None = None
) -> tuple[str, ...]:
    """Return the parameters that a backward pass from `branch` would reach, without those in `own` and `named`.

    Examples: a parameter of another host, or a parameter that the seed uses without registering it.
    """
    known = {id(tensor) for tensor in (*own, *named.values())}
    strange = [leaf for leaf in leaves_of(branch, cut) if isinstance(leaf, nn.Parameter) and id(leaf) not in known]
    return tuple(f"a parameter outside the seed and its host, of shape {tuple(leaf.shape)}" for leaf in strange)


def leaves_of(branch: Tensor, cut: Edge | None = None) -> Iterator[Tensor]:
    """Yield each tensor whose gradient a backward pass from `branch` would change, except tensors behind `cut`."""
    seen: set[object] = set()
    edges = [edge_of(branch)]
    while edges:
        edge = edges.pop()
        if edge is None or edge == cut or edge[0] is None or edge[0] in seen:
            continue
        node = edge[0]
        seen.add(node)
        if hasattr(node, "variable"):  # only the end of a path, AccumulateGrad, has this attribute
            yield node.variable
        edges.extend(node.next_functions)


def sharing_memory(own: Iterable[Tensor], foreign: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the tensors in `foreign` that share memory with a tensor in `own`.

    The autograd graph does not show shared memory, because two parameters with the same memory are two leaves.
    """
    places = {_place(tensor) for tensor in own if tensor.numel()}
    return tuple(sorted(name for name, tensor in foreign.items() if tensor.numel() and _place(tensor) in places))


def _place(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def record_of(host: nn.Module, seeds: Mapping[str, Tensor], batch: object) -> Held:
    """Return the digests of everything that the call of a seed must not change, by path; see `path_in_words`.

    The record has the batch, and the attributes, modes and hooks of the host's modules. Of the tensors of the host and
    of other seeds, it has the values, gradients, hooks and `requires_grad`. It contains digests of values, so a change
    through `Tensor.data` or numpy is found, too.

    Args:
        seeds: The tensors of the other seeds, by name.
        batch: Input of the host in this step. None: the host has no input now.
    """
    tensors = {**tensors_of(host), **seeds}
    found = held_by(host, {id(tensor): None for tensor in tensors.values()})
    found |= held_by({"the batch": batch}, limits=WHOLE)
    found = {path: leaf for path, leaf in found.items() if path}
    for name, tensor in tensors.items():
        found[f"['{name}']"] = Leaf("Tensor", _digest_with_flags(tensor))
        if tensor.grad is not None:
            found[f"['{name}.grad']"] = Leaf("Tensor", digest_of(tensor.grad, WHOLE.whole_bytes))
    return found


def tensors_of(host: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a host, by name. A tensor with several names has the first name."""
    found: dict[str, Tensor] = {}
    seen = set[int]()
    for path, module in host.named_modules():
        prefix = f"{path}." if path else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[prefix + name] = tensor
    return found


def _digest_with_flags(tensor: Tensor) -> int:
    """Return a digest of a tensor's values, identity, `requires_grad` and hooks, and of its changes in place."""
    version = None if tensor.is_inference() else tensor._version
    hooks = tuple(tensor._backward_hooks or ()), tuple(tensor._post_accumulate_grad_hooks or ())
    values = digest_of(tensor, WHOLE.whole_bytes)
    return hash((values, id(tensor), tensor.requires_grad, version, hooks))
