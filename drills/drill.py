"""A drill: one thing that is broken at one stated moment, and what must follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from drills.drill_context import DrillContext
    from drills.observed import Observed

Place = Literal["in process", "on actors"]


@dataclass(frozen=True)
class Finding:
    """One expectation beside what was found."""

    expected: str
    found: str
    met: bool


Expectation = Callable[["Observed"], Finding]
"""A function that compares what a drill left with what must follow. `drills.expect` makes expectations."""


@dataclass(frozen=True)
class Drill:
    """One drill. `act` breaks something; after it, every expectation of `follows` must be met.

    The runner adds the expectations of every drill: each armed fault fired as often as asked, and nothing is left
    behind.
    """

    name: str
    """Words joined by hyphens. It is unique among all drills."""
    what: str
    """What is broken and what must follow, in one sentence."""
    act: Callable[[DrillContext], None]
    """Runs, breaks and resumes by the methods of its argument."""
    follows: tuple[Expectation, ...]
    place: Place = "on actors"
    number: int = 0
    """Number in the catalogue. 0: a drill of a user."""
    needs: str = ""
    """The part that esper does not have yet. "": the drill can be run."""
