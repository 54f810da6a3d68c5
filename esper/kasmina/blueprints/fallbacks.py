"""How a seed's module tells that it fell back: that it does not compute as its blueprint planned.

A fallback is never hidden. Each gate reads what was told since the last fence, and refuses the seed.
"""

from __future__ import annotations

from collections import defaultdict

from torch import nn

_TOLD = "_fallbacks_told"


def fell_back(module: nn.Module, why: str) -> None:
    """Tell that a seed does not compute as planned: its fast kernel is missing, or it works at a lower precision.

    Call it in a blueprint's factory, or in the constructor or the forward of a module of the seed. Outside a run, in a
    finished network for example, it has no effect.

    Args:
        module: The module that fell back: the seed itself, or one of its submodules.
        why: What happened instead; it is shown as the reason of the refusal.

    Raises:
        ValueError: `why` is blank.
    """
    if not why.strip():
        raise ValueError("fell_back needs the reason of the fallback; it is blank")
    told = _told_by(module)
    if why not in told:
        setattr(module, _TOLD, (*told, why))


def fallbacks_told(seed: nn.Module) -> tuple[str, ...]:
    """Return the reasons that a seed and its submodules have told, each once, in the order of the modules."""
    return tuple(dict.fromkeys(why for module in seed.modules() for why in _told_by(module)))


def _told_by(module: nn.Module) -> tuple[str, ...]:
    if _TOLD not in vars(module):
        return ()
    told: tuple[str, ...] = getattr(module, _TOLD)
    return told


class Told:
    """What one seed told since it was built and since the last `take`."""

    def __init__(self, seed: nn.Module) -> None:
        """Begin with a seed that was just built, and has not run."""
        self._seed = seed
        self._when_built = defaultdict[nn.Module, tuple[str, ...]](tuple)
        self._when_built.update((module, _told_by(module)) for module in seed.modules())

    def take(self) -> tuple[str, ...]:
        """Return what was told when the seed was built and since the last call. Only the former is told again."""
        found = fallbacks_told(self._seed)
        for module in self._seed.modules():
            if _told_by(module):
                setattr(module, _TOLD, self._when_built[module])
        return found
