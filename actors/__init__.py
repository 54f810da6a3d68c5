"""The same flow across processes: thin actors, typed handles, supervision, the conductor. No rule of a room is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.launcher import launch, resume

__all__ = ["launch", "resume"]


def __getattr__(name: str) -> object:
    """`launch` and `resume`, once somebody asks: an actor's process imports this package and never needs them."""
    if name in __all__:
        from actors import launcher

        return getattr(launcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
