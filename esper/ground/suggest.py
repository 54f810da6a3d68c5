"""Suggests existing names for an unknown name: the nearest name, or all names if no name is near."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

ALIKE = 0.6
"""Smallest `difflib` ratio of two names that count as near. The ratio of equal names is 1. With 0.6, a name with two
errors in six letters still counts as near.
"""

LISTED = 8
"""Largest number of names that a message lists. If there are more names, the message lists the first names and the
number of the others.
"""


def existing_names(wrong: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return the end of an error's sentence, with the existing names that `wrong` may mean.

    Upper and lower case do not matter. A name with dots is also near if its last part is the same.

    Args:
        wrong: The name that does not exist.
        known: The names that exist, in the order of the list.
        show: Returns a name as text. Use `repr` for names that users choose, because these may contain any character.

    Returns:
        "the nearest is NAME", "there are NAME, NAME and 3 more", "there is only NAME" or "there is none".
    """
    names = list(known)
    near = nearest(wrong, names)
    if near is not None:
        return f"the nearest is {show(near)}"
    if len(names) <= 1:
        return f"there is only {show(names[0])}" if names else "there is none"
    return f"there are {listed(names, show)}"


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that is nearest to `wrong`. Return None if no name is near."""
    by_folded = {name.casefold(): name for name in known}
    folded = wrong.casefold()
    found = difflib.get_close_matches(folded, by_folded, n=1, cutoff=ALIKE)
    last = folded.rpartition(".")[2]
    if not found and last.isidentifier():
        found = [name for name in by_folded if name.rpartition(".")[2] == last]
    return by_folded[found[0]] if found else None


def listed(names: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return the names in one line. If there are many, return the first `LISTED` and the number of the others."""
    every = [show(name) for name in names]
    shown, more = every[:LISTED], len(every) - LISTED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
