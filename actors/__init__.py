"""The same flow across processes: thin actors, typed handles, supervision, the conductor. No rule of a room is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.launcher import launch

__all__ = ["launch"]


def __getattr__(name: str) -> object:
    """`launch`, once somebody asks for it: an actor's process imports this package and never launches."""
    if name == "launch":
        from actors import launcher

        return launcher.launch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
