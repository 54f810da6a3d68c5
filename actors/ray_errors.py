"""Translates exceptions of Ray into exceptions of esper, in the process that called the actor."""

from __future__ import annotations

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.shell import relinked
from esper.errors import ActorDoubtful, ActorError, ActorLost, CallDeadlineExceeded, TrainerRankLost


def unwrapped(error: BaseException, role: str, name: str = "") -> BaseException:
    """Return the exception of esper for an exception of Ray. The exception of Ray becomes the cause of the returned
    exception.

    Other exceptions are returned unchanged. If a method or the constructor of the actor raised an exception, this
    exception is returned. Else it is `ActorLost` if the process has ended, `ActorDoubtful` if the connection broke and
    the process may be running, and `CallDeadlineExceeded` if the answer is late. In other cases it is `ActorError`, for
    example if an exception cannot be sent.
    """
    if isinstance(error, RayTaskError):
        cause = relinked(unwrapped(error.cause, role, name))
        cause.add_note(f"raised in {name or role}:\n{error}")
        return cause
    if isinstance(error, ActorDiedError) and error.args and isinstance(error.args[0], RayTaskError):
        return unwrapped(error.args[0], role, name)  # the actor's constructor raised
    if not isinstance(error, RayError):
        return error
    found = _kind(error, role)(role, f"{name}: {_first_line(error)}" if name not in ("", role) else _first_line(error))
    found.__cause__ = error
    return found


def loss_of(role: str) -> type[ActorLost]:
    """Return the class of error for the death of an actor of this component."""
    return TrainerRankLost if role == "tolaria" else ActorLost


def _kind(error: RayError, role: str) -> type[ActorError]:
    if isinstance(error, ActorUnavailableError):
        return ActorDoubtful
    if isinstance(error, RayActorError):
        return loss_of(role)
    return CallDeadlineExceeded if isinstance(error, GetTimeoutError) else ActorError


def _first_line(error: BaseException) -> str:
    """Return the line of Ray's message that has the reason. The general advice after this line is left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ending = next((line for line in lines if line.startswith("The actor is dead")), lines[0] if lines else "")
    return ending.partition(" Some common causes")[0]
