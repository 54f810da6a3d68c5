"""The first problem that pydantic found in an input, as part of one line of text."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError


@dataclass(frozen=True)
class Problem:
    """Where in an input the problem is, what it is, and the value that was found there."""

    place: tuple[str | int, ...]
    message: str
    kind: str
    value: object

    def __str__(self) -> str:
        """The place, its parts joined by dots, and the message; the message alone where the whole input is wrong."""
        where = ".".join(map(str, self.place))
        return f"{where}: {self.message}" if where else self.message


def first_problem(error: ValidationError, within: str = "") -> Problem:
    """The first of the problems that pydantic found; its message begins with a small letter.

    Args:
        within: The name of the whole input, which becomes the first part of the place.
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return Problem(
        (*filter(None, [within]), *first["loc"]), message[:1].lower() + message[1:], first["type"], first["input"]
    )
