"""A run whose rooms are actors of Ray: handles, supervision, Ray itself. It has no rule of a room."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.launcher import launch, resume

__all__ = ["launch", "resume"]


def __getattr__(name: str) -> object:
    """Import `launch` and `resume` at their first use: the process of an actor imports this package without them."""
    if name in __all__:
        from actors import launcher

        return getattr(launcher, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
