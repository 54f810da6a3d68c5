"""A grown network rebuilt around its host's own factory, from names and tensors alone. It needs torch alone.

`esper export --format torch` writes these definitions into the file that it makes, for where esper is not installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.host.attached import Seed, attach

Content = Mapping[str, Any]  # Any: tensors, and what `get_extra_state` gave
Grafted = tuple[str, int, Callable[[], nn.Module], torch.dtype, torch.dtype]
"""Slot, ordinal, how to make the seed's module, the types of its parameters and of its alpha."""


def rebuild(model: Callable[[], nn.Module], seeds: Sequence[Grafted], state: Content, modules: str) -> nn.Module:
    """The grown network around what `model()` gives, in evaluation mode.

    Args:
        model: The factory of the host that grew.
        seeds: In the order in which they were grafted.
        state: What `state_of` gave.
        modules: What `structure_digest` gave for the host.

    Raises:
        TypeError: `model` is a network, not its factory.
        ValueError: `model` builds another network than the one that grew.
    """
    if isinstance(model, nn.Module):
        raise TypeError(f"give the factory of the network that grew, not a {type(model).__name__} that it has built")
    network = model()
    if structure_digest(network) != modules:
        how = f"a module of it, or a setting, differs (torch is {torch.__version__} here)"
        raise ValueError(f"this is another network than the one that grew: {how}")
    made = [(slot, at, Seed(make().to(dtype), torch.zeros((), dtype=alpha))) for slot, at, make, dtype, alpha in seeds]
    attach(network, made)
    fill(network, state)
    return network.eval()


def state_of(network: nn.Module) -> dict[str, Any]:  # Any: see Content
    """The state dict of a network, with the buffers that it leaves out; the tensors are the network's own."""
    state: dict[str, Any] = network.state_dict()
    state.update({name: buffer.detach() for name, buffer in network.named_buffers() if name not in state})
    return state


@torch.no_grad()
def fill(network: nn.Module, state: Content) -> None:
    """Copy a state into a network, all of it and nothing else. Raises: ValueError: it is of another network."""
    own, buffers = network.state_dict(), dict(network.named_buffers())
    if how := difference({**buffers, **own}, state):
        raise ValueError(f"this is another network than the one that grew: {how}")
    network.load_state_dict({name: state[name] for name in own})
    for name in buffers.keys() - own.keys():
        buffers[name].copy_(state[name])


def difference(live: Content, kept: Content) -> str:
    """The first way in which the names, shapes and types of a network differ from those that were kept; or nothing."""
    for name in sorted(kept.keys() - live.keys()):
        return f"it has no {name}"
    for name in sorted(live.keys() - kept.keys()):
        return f"it has {name}, which the network that grew did not have"
    for name, tensor in kept.items():
        here = live[name]
        if isinstance(tensor, Tensor) and (here.shape, here.dtype) != (tensor.shape, tensor.dtype):
            now, then = f"{list(here.shape)} of {here.dtype}", f"{list(tensor.shape)} of {tensor.dtype}"
            return f"its {name} is {now}, and was {then}"
    return ""


def structure_digest(network: nn.Module) -> str:
    """SHA-256, in hex, over the names and classes of all modules, and the settings of those that are torch's own."""
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        kind = type(module)
        settings = module.extra_repr() if kind.__module__.startswith("torch.nn.modules.") else ""
        digest.update(f"{name}: {kind.__qualname__}({settings})\n".encode())
    return digest.hexdigest()
