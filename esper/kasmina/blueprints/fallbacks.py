"""Reports of seeds that do not compute as their blueprints planned. A report of this kind is called a fallback.

A gate refuses a seed that has reported a fallback since the last fence.
"""

from __future__ import annotations

from collections import defaultdict

from torch import nn

_TOLD = "_fallbacks_told"


def fell_back(module: nn.Module, why: str) -> None:
    """Report that a seed does not compute as planned, for example because its fast kernel is missing.

    Call this function in a blueprint's factory, or in the constructor or the forward of a module of the seed. Outside a
    run, for example in a finished network, a call has no effect.

    Args:
        module: The module that fell back: the seed itself, or one of its submodules.
        why: The reason of the fallback. The refusal of the seed shows it.

    Raises:
        ValueError: `why` is blank.
    """
    if not why.strip():
        raise ValueError("fell_back needs the reason of the fallback; it is blank")
    told = _told_by(module)
    if why not in told:
        setattr(module, _TOLD, (*told, why))


def fallbacks_told(seed: nn.Module) -> tuple[str, ...]:
    """Return the fallbacks that a seed and its submodules have reported, each once, in the order of the modules."""
    return tuple(dict.fromkeys(why for module in seed.modules() for why in _told_by(module)))


def _told_by(module: nn.Module) -> tuple[str, ...]:
    if _TOLD not in vars(module):
        return ()
    told: tuple[str, ...] = getattr(module, _TOLD)
    return told


class Told:
    """The fallbacks of one seed: those of its construction, and those since the last `take`."""

    def __init__(self, seed: nn.Module) -> None:
        """Make the record of a seed that has been built and has not run."""
        self._seed = seed
        self._when_built = defaultdict[nn.Module, tuple[str, ...]](tuple)
        self._when_built.update((module, _told_by(module)) for module in seed.modules())

    def take(self) -> tuple[str, ...]:
        """Return the fallbacks of the construction and those since the last call.

        The fallbacks of the construction are returned by every call.
        """
        found = fallbacks_told(self._seed)
        for module in self._seed.modules():
            if _told_by(module):
                setattr(module, _TOLD, self._when_built[module])
        return found
