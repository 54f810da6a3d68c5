"""Text that `esper plan --null` and `esper prove --null` print."""

from __future__ import annotations

from esper.setup.null_tournament import NullVerdict
from esper.setup.null_trial import NullTrial
from esper.setup.wording import percent


def line(one: NullVerdict) -> str:
    """Return a line about the verdict of one tournament or later look."""
    where = f"run seed {one.run_seed}" + (f", tournament {one.number}" if one.number > 1 else "")
    where += f", later look {one.look}" if one.look else ""
    if one.kind is None:
        return f"{where}: every seed diverged"
    said = "accepted" if one.accepted else f"refused: {', '.join(one.reasons).replace('_', ' ')}"
    return f"{where}: {one.kind} came first, {said}"


def summary(found: NullTrial) -> str:
    """Return the shares of tournaments and of runs that accepted a useless seed, with their intervals."""
    count, could = found.tournaments, found.only_placebos_refuse
    lines = [
        f"{found.accepted} of {count} tournaments of {found.candidates} useless seeds and {found.placebos} placebos"
        f" accepted one: {_share(found.accepted / count, found.interval)};"
        f" z was for {found.tests:g} test{'s' if found.tests > 1 else ''}"
    ]
    if found.in_a_run > 1 or found.looks:
        looks = f" with up to {_counted(found.looks, 'later look')} each" if found.looks else ""
        lines.append(
            f"{found.accepted} of {found.runs} runs of up to {_counted(found.in_a_run, 'tournament')}{looks} accepted"
            " one:"
            f" {_share(found.accepted / found.runs, found.interval_of_runs)}"
        )
    if could:
        lines.append(
            f"the first seed met all limits, or all but that of the placebos, in {_counted(could, 'verdict')}; share"
            f" of these that accepted it: {_share(found.accepted / could, found.interval_of_those)}"
        )
    if not found.own_samples:
        lines.append("the task gives its own pick or gate shard, so these runs were judged on the same samples")
    return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _share(share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{percent(share)} (95 % interval {percent(low)} to {percent(high)})"
