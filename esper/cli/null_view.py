"""Text that `esper plan --null` and `esper prove --null` print."""

from __future__ import annotations

from esper.setup.null_trial import NullTournament, NullTrial
from esper.setup.wording import percent


def line(one: NullTournament) -> str:
    """Return a line about one tournament."""
    if one.kind is None:
        return f"run seed {one.run_seed}: every seed diverged"
    said = "accepted" if one.accepted else f"refused: {', '.join(one.reasons).replace('_', ' ')}"
    return f"run seed {one.run_seed}: {one.kind} came first, {said}"


def summary(found: NullTrial) -> str:
    """Return the share of tournaments that accepted a useless seed, with its interval."""
    count = len(found.tournaments)
    low, high = found.interval
    return (
        f"{found.accepted} of {count} tournaments of {found.candidates} useless seeds and {found.placebos} placebos"
        f" accepted one: {percent(found.accepted / count)} (95 % interval {percent(low)} to {percent(high)});"
        f" z was for {found.tests} test{'s' if found.tests > 1 else ''}"
    )
