"""Reports of seeds that do not compute as their blueprints planned. A report of this kind is called a fallback.

A gate refuses a seed that has reported a fallback since the last fence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints.padded import seed_output

_TOLD = "_fallbacks_told"


def fell_back(module: nn.Module, why: str) -> None:
    """Report that a seed does not compute as planned, for example because a fast kernel is missing.

    Call this function in a blueprint's factory, or in the constructor or the forward of a module of the seed. Outside a
    run, for example in a finished network, a call has no effect.

    Args:
        module: The module that fell back: the seed itself, or a part of it, registered as a submodule or not.
        why: The reason of the fallback. The refusal of the seed shows it.

    Raises:
        TypeError: `module` is not a module, or `why` is not text.
        ValueError: `why` is blank.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"fell_back needs the module that fell back, not {type(module).__name__}")
    if not isinstance(why, str):
        raise TypeError(f"fell_back needs the reason of the fallback as text, not {type(why).__name__}")
    if not why.strip():
        raise ValueError("fell_back needs the reason of the fallback; it is blank")
    _note(module, why)
    if not torch.compiler.is_compiling() and (heard := _HEARD.get()) is not None:
        heard.append(why)


def _note(module: nn.Module, why: str) -> None:
    told = _told_by(module)
    if why not in told:
        setattr(module, _TOLD, (*told, why))


_HEARD: ContextVar[list[str] | None] = ContextVar("_HEARD", default=None)
"""The reports during the running call of a seed. None: no call is running."""


def heard(seed: nn.Module, h: Tensor, padding: Tensor | None = None) -> Any:  # Any: as `seed_output`
    """Return the `seed_output`. Every report during the call counts as a report of the seed itself."""
    whys: list[str] = []
    token = _HEARD.set(whys)
    try:
        return seed_output(seed, h, padding)
    finally:
        _HEARD.reset(token)
        for why in whys:
            _note(seed, why)


def heard_while_built(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a new seed. Every report during its construction counts as a report of the seed itself."""
    whys: list[str] = []
    token = _HEARD.set(whys)
    try:
        seed = build()
    finally:
        _HEARD.reset(token)
    for why in whys:
        _note(seed, why)
    return seed


def fallbacks_told(seed: nn.Module) -> tuple[str, ...]:
    """Return the fallbacks that a seed and its submodules have reported, each once, in the order of the modules."""
    return tuple(dict.fromkeys(why for module in seed.modules() for why in _told_by(module)))


def _told_by(module: nn.Module) -> tuple[str, ...]:
    if _TOLD not in vars(module):
        return ()
    told: tuple[str, ...] = getattr(module, _TOLD)
    return told


class Told:
    """The fallbacks that one seed reported during its construction and since the last `take`."""

    def __init__(self, seed: nn.Module) -> None:
        """Make the record of a seed. The seed is built, and has not run yet."""
        self._seed = seed
        self._when_built = defaultdict[nn.Module, tuple[str, ...]](tuple)
        self._when_built.update((module, _told_by(module)) for module in seed.modules())

    def take(self) -> tuple[str, ...]:
        """Return the fallbacks during the construction, and the fallbacks since the last call.

        Every call returns the fallbacks during the construction.
        """
        found = fallbacks_told(self._seed)
        for module in self._seed.modules():
            if _told_by(module):
                setattr(module, _TOLD, self._when_built[module])
        return found
