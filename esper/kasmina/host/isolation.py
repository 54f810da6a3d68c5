"""Finds the host parameters that a seed's gradient can reach, by a walk over the autograd graph."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def reachable_parameters(branch: Tensor, parameters: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """Return the names of the parameters whose gradient a backward pass from `branch` would change.

    The result is exact: the walk follows every edge of the graph to the leaves, and `backward` follows the same edges.

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
