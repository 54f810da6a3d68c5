"""Suggests existing names for an unknown name: the nearest one, or all of them if none is near."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

ALIKE = 0.6
"""`difflib`'s ratio from which two names count as near; 1 for equal names. With 0.6, two typing errors in six letters
pass.
"""

LISTED = 8
"""Largest number of names that a message lists. Of more names it lists the first ones and gives the number of the
others.
"""


def existing_names(wrong: str, known: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Return the end of an error's sentence: the existing names that may be meant by `wrong`.

    Upper and lower case count as equal. Of names with dots, one with the same last part is near, too.

    Args:
        wrong: The name that does not exist.
        known: The names that exist, in the order in which they are to be listed.
        show: Writes a name; `repr` for names that users choose, which may hold any character.

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
    """Return the name in `known` that is nearest to `wrong`; None if no name is near."""
    by_folded = {name.casefold(): name for name in known}
    folded = wrong.casefold()
    found = difflib.get_close_matches(folded, by_folded, n=1, cutoff=ALIKE)
    last = folded.rpartition(".")[2]
    if not found and last.isidentifier():
        found = [name for name in by_folded if name.rpartition(".")[2] == last]
    return by_folded[found[0]] if found else None


def listed(names: Iterable[str], show: Callable[[str], str] = str) -> str:
    """The names in one line; of many, the first `LISTED` and how many more there are."""
    every = [show(name) for name in names]
    shown, more = every[:LISTED], len(every) - LISTED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
