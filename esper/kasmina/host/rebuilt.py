"""Rebuilds a grown network from its host's factory and the saved tensors. Imports only torch.

`esper export --format torch` copies these definitions into the exported file, for machines without esper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.host.attached import Seed, attach

Content = Mapping[str, Any]  # Any: tensors and results of `get_extra_state`
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
How = tuple[Callable[[], nn.Module], torch.dtype, torch.dtype, Formula, tuple[int, ...] | None]
"""Factory of a seed's module, dtype of its parameters, dtype of its alpha, formula of its blend, and shape of the
vector over the channels (None: no vector)."""
Grafted = tuple[str, int, How]
"""Slot, ordinal, and `How` of a seed."""


def rebuild(model: Callable[[], nn.Module], seeds: Sequence[Grafted], state: Content, modules: str) -> nn.Module:
    """Return the grown network: `model()` with the seeds and the state, in evaluation mode.

    Args:
        model: The factory of the host.
        seeds: In the order in which they were grafted.
        state: The result of `whole_state` for the grown network.
        modules: The result of `structure_digest` for the host.

    Raises:
        TypeError: `model` is a network, not a factory.
        ValueError: `model` builds a network other than the host that grew.
    """
    if isinstance(model, nn.Module):
        raise TypeError(f"give the factory of the network that grew, not a {type(model).__name__} that it has built")
    network = model()
    if structure_digest(network) != modules:
        how = f"a module of it, or a setting, differs (torch is {torch.__version__} here)"
        raise ValueError(f"this is another network than the one that grew: {how}")
    made = [(slot, ordinal, _empty(*how)) for slot, ordinal, how in seeds]
    attach(network, made)
    fill(network, state)
    return network.eval()


def _empty(
    make: Callable[[], nn.Module], dtype: torch.dtype, alpha: torch.dtype, formula: Formula, shape: Sequence[int] | None
) -> Seed:
    """Return a seed whose alpha and vector are 0. `fill` sets the values of both."""
    vector = torch.zeros(shape, dtype=alpha) if shape is not None else None
    return Seed(make().to(dtype), torch.zeros((), dtype=alpha), formula, vector)


def whole_state(network: nn.Module) -> dict[str, Any]:  # Any: see Content
    """Return a network's state dict plus its non-persistent buffers. The tensors are not copied."""
    state: dict[str, Any] = network.state_dict()
    state.update({name: buffer.detach() for name, buffer in network.named_buffers() if name not in state})
    return state


@torch.no_grad()
def fill(network: nn.Module, state: Content) -> None:
    """Copy a whole state into a network. Raises: ValueError: names, shapes or dtypes in the state differ from those in
    the network.
    """
    own, buffers = network.state_dict(), dict(network.named_buffers())
    if how := difference({**buffers, **own}, state):
        raise ValueError(f"this is another network than the one that grew: {how}")
    network.load_state_dict({name: state[name] for name in own})
    for name in buffers.keys() - own.keys():
        buffers[name].copy_(state[name])


def difference(live: Content, stored: Content) -> str:
    """Return the first difference of names, shapes or dtypes between a network and a saved state. "": they agree."""
    for name in sorted(stored.keys() - live.keys()):
        return f"it has no {name}"
    for name in sorted(live.keys() - stored.keys()):
        return f"it has {name}, which the network that grew did not have"
    for name, tensor in stored.items():
        here = live[name]
        if isinstance(tensor, Tensor) and (here.shape, here.dtype) != (tensor.shape, tensor.dtype):
            now, then = f"{list(here.shape)} of {here.dtype}", f"{list(tensor.shape)} of {tensor.dtype}"
            return f"its {name} is {now}, and was {then}"
    return ""


def structure_digest(network: nn.Module) -> str:
    """Return the SHA-256, in hex, of the names and classes of all modules, and of the settings of torch's modules."""
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        kind = type(module)
        settings = module.extra_repr() if kind.__module__.startswith("torch.nn.modules.") else ""
        digest.update(f"{name}: {kind.__qualname__}({settings})\n".encode())
    return digest.hexdigest()
