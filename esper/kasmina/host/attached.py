"""Seeds as registered modules of a finished network, called by forward hooks.

Imports only torch, and modules of esper that import only torch. A live host does not register its seeds as modules
(see `host_editor.py`), because seeds are added to it and removed from it. A finished network registers its seeds, so
that the seeds are moved, copied and pickled with the network, and switch modes with the network. A forward pass changes
no alpha.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from esper.ground.slot_output import part_of, with_part
from esper.kasmina.blueprints.padded import seed_output, takes_padding
from esper.kasmina.host.formulas import weight_of
from esper.kasmina.host.padding_masks import padding_of, positional_names

PREFIX = "esper_seeds"
"""First part of the name of every seed tensor: `esper_seeds.<slot>.<ordinal>.<name in the seed>`."""


class Seed(nn.Module):
    """A slot's output with the seed blended in by a formula of `formulas.py`, such as `h + alpha * module(h)`.

    `alpha` is a buffer of rank 0. `channels` is a buffer by which alpha is multiplied, or None.
    """

    alpha: Tensor
    channels: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        alpha: Tensor,
        formula: Callable[[Tensor, Tensor, Tensor], Tensor],
        channels: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.formula = formula
        self.register_buffer("alpha", alpha)
        self.register_buffer("channels", channels)

    def forward(self, host: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return the blended output, [B, ...]. `padding`: see `seed_output`.

        Raises: ValueError: the seed's output has another shape than `host`.
        """
        correction: Tensor = seed_output(self.module, host, padding).to(host.dtype)  # autocast may change the dtype
        if correction.shape != host.shape:
            raise ValueError(f"a seed's output has shape {tuple(correction.shape)}, its slot's {tuple(host.shape)}")
        return self.formula(host, correction, weight_of(self.alpha, self.channels, host))


class SlotHook:
    """The forward hook of one slot. Torch replaces the slot's output by its return value."""

    def __init__(self, slot: nn.Module, seeds: Iterable[Seed] = ()) -> None:
        self.seeds, self.names = list(seeds), positional_names(slot)

    def register(self, slot: nn.Module) -> None:
        """Make this the hook of the slot's module, with which it was made."""
        slot.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self,
        slot: nn.Module,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        output: Any,  # Any: as in `slot_output`
    ) -> Any:
        """Return the slot's output with all seeds blended into `part_of(output)`, in the order of their grafts.

        Raises: ValueError: a seed takes padding, and the form of the mask in the call of the slot is not known.
        """
        del slot
        part = part_of(output)
        reads = any(takes_padding(seed.module) for seed in self.seeds)
        padding = padding_of(self.names, args, kwargs, part) if reads else None
        for seed in self.seeds:
            part = seed(part, padding)
        return with_part(output, part)


class SeedHolder(nn.Module):
    """The parent of all seeds of a network. It is not a layer, so a forward pass must not call it.

    The forward pass of `nn.Sequential` calls each of its children. As the last of these children, this module returns
    its argument. In any other network a call raises, because this module is not a layer of the network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.passes = type(network).forward is nn.Sequential.forward

    def forward(self, value: Any) -> Any:  # Any: the output of the layer before it
        """Return the argument. Raises: TypeError: the network does not have the forward of `nn.Sequential`."""
        if not self.passes:
            raise TypeError(f"the network calls each of its children, also {PREFIX!r}, which is not a layer")
        return value


def attach(network: nn.Module, seeds: Iterable[tuple[str, int, Seed]]) -> None:
    """Register seeds in a network that has no seeds, and hook them to their slots.

    Args:
        seeds: (slot, ordinal, seed), in the order in which they were grafted.

    Raises:
        ValueError: the network has no module at a slot, or the names of the seeds collide; see `check_names`.
    """
    seeds = list(seeds)
    check_names(network, [slot for slot, _, _ in seeds])
    hooks: dict[str, SlotHook] = {}
    for slot, ordinal, seed in seeds:
        if slot not in hooks:
            hooks[slot] = SlotHook(module := network.get_submodule(slot))
            hooks[slot].register(module)
        hooks[slot].seeds.append(seed)
        register(network, [PREFIX, *slot.split("."), str(ordinal)], seed)


def check_names(network: nn.Module, slots: Collection[str]) -> None:
    """Check that seeds in these slots can be registered in a network without a collision of names.

    Raises:
        ValueError: the network has no module at a slot; it has a module called `esper_seeds`; or a slot's path is also
            the path of a part of a seed in another slot (`<slot>.<ordinal>.module`).
    """
    known = dict(network.named_modules(remove_duplicate=False))
    if PREFIX in known:
        raise ValueError(f"it has a module called {PREFIX!r}, where the seeds belong")
    for slot in slots:
        if slot not in known:
            raise ValueError(f"it has no module {slot!r}")
        for other in slots:
            if re.match(rf"{re.escape(other)}\.\d+\.module(\.|$)", slot):
                raise ValueError(f"slot {slot!r} has the path of a part of a seed in slot {other!r}")


def register(network: nn.Module, path: list[str], seed: Seed) -> None:
    """Register a seed at a path of names below a network.

    Missing modules on the path are added. The first of them is a `SeedHolder`, and those below it are empty modules. If
    `a` and `a.0` are slots, the first seed of `a` and the parent of the seeds of `a.0` have the same path. In this case
    the seed of `a` is also the parent. If children were registered before the seed of `a`, they become its children.
    """
    place = network
    for name in path[:-1]:
        if name not in place._modules:
            place.add_module(name, SeedHolder(network) if place is network else nn.Module())
        place = place.get_submodule(name)
    if path[-1] in place._modules:
        for name, child in place.get_submodule(path[-1]).named_children():
            seed.add_module(name, child)
    place.add_module(path[-1], seed)
