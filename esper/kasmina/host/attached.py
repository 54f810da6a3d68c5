"""Seeds as an ordinary part of an ordinary network: registered in it, called by forward hooks. It needs torch alone.

A live host keeps its seeds apart, in `host_editor.py`, because they come and go there. A network that is given
away has these instead: they move, switch modes, copy and pickle with it, and change nothing while they run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import Tensor, nn

PREFIX = "esper_seeds"
"""First part of the names of all seed tensors: `esper_seeds.<slot>.<ordinal>.<name in the seed>`."""


class Seed(nn.Module):
    """h + alpha * module(h): a slot's output with the seed's correction added. `alpha` is a rank-0 buffer."""

    alpha: Tensor

    def __init__(self, module: nn.Module, alpha: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("alpha", alpha)

    def forward(self, host: Tensor) -> Tensor:
        """The slot's output, [B, ...], blended; same shape. Raises: ValueError: the correction has another shape."""
        correction: Tensor = self.module(host).to(host.dtype)  # where autocast chose another type for it
        if correction.shape != host.shape:
            raise ValueError(f"a seed's output has shape {tuple(correction.shape)}, its slot's {tuple(host.shape)}")
        return host + self.alpha * correction


class SlotHook:
    """The forward hook of one slot: what it returns takes the place of the slot's output."""

    def __init__(self, seeds: list[Seed]) -> None:
        self.seeds = seeds

    def __call__(self, slot: nn.Module, args: object, output: Tensor) -> Tensor:
        """The slot's output, [B, ...], with each seed acting on the output of the seed before it."""
        del slot, args
        for seed in self.seeds:
            output = seed(output)
        return output


def attach(network: nn.Module, seeds: Iterable[tuple[str, int, Seed]]) -> None:
    """Make seeds part of a network that has none.

    Args:
        seeds: (slot, ordinal, seed), in the order in which they were grafted.

    Raises:
        ValueError: the network has no module at a slot, or its names and those of the seeds are not apart.
    """
    seeds = list(seeds)
    check_names(network, [slot for slot, _, _ in seeds])
    hooks: dict[str, SlotHook] = {}
    for slot, ordinal, seed in seeds:
        if slot not in hooks:
            hooks[slot] = SlotHook([])
            network.get_submodule(slot).register_forward_hook(hooks[slot])
        hooks[slot].seeds.append(seed)
        register(network, [PREFIX, *slot.split("."), str(ordinal)], seed)


def check_names(network: nn.Module, slots: Collection[str]) -> None:
    """Check that seeds in these slots can be part of a network.

    Raises:
        ValueError: the network has no module at a slot, has a module called `esper_seeds`, or a slot's path is also
            that of what a seed in another slot holds.
    """
    known = dict(network.named_modules(remove_duplicate=False))
    if PREFIX in known:
        raise ValueError(f"it has a module called {PREFIX!r}, where the seeds belong")
    for slot in slots:
        if slot not in known:
            raise ValueError(f"it has no module {slot!r}")
        for other in slots:
            if re.match(rf"{re.escape(other)}\.\d+\.module(\.|$)", slot):
                raise ValueError(f"slot {slot!r} has the name of what a seed in slot {other!r} holds")


def register(network: nn.Module, path: list[str], seed: Seed) -> None:
    """Register a seed at a path of names below a network; on the way there are empty modules, or seeds.

    With slots `a` and `a.0` the first seed of `a` stands where the seeds of `a.0` are kept: it holds them too.
    """
    place = network
    for name in path[:-1]:
        if name not in place._modules:
            place.add_module(name, nn.Module())
        place = place.get_submodule(name)
    if path[-1] in place._modules:
        for name, child in place.get_submodule(path[-1]).named_children():
            seed.add_module(name, child)
    place.add_module(path[-1], seed)
