"""The rungs of a tournament: the steps at which its forks are judged, and the forks that continue after each rung."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from esper.kasmina.settings import GrowthConfig

T = TypeVar("T")

MOST_OF_A_RUN = 2, 5
"""Largest share of a run that the rungs of a tournament may take, as a fraction. A graft that comes later gains less
(docs/growth.md)."""
LAST_LOOK = 4, 5
"""Share of a run up to which refused candidates are judged again, as a fraction."""
FEW = 3
"""Number of forks that continue after the second and each later rung."""
FENCES_OF_WATCH = 2
"""Fences between the adoption of a seed and its probation."""
LOOKS_AS_TOURNAMENT = 10
"""Number of later looks that together have the chance of a false pass of one tournament (docs/adr/0013-placebos.md)."""
NEAR = 3.0
"""The best fork of a rung counts as not better than the placebos up to this number of times the spread of their gains
above their mean. This limit drops no seed, so no chance of an error is computed for it."""
SOFT = 7, 10
"""Share of the forks that continue while the best fork is not better than the placebos, as a fraction."""


@dataclass(frozen=True)
class Course:
    """The rungs of one tournament. The last rung is its end."""

    rounds: int
    """Number of rounds between the snapshot and the verdict."""
    steps: tuple[int, ...]
    """Optimizer steps of a fork up to each rung, ascending."""
    units: tuple[int, ...]
    """Number of samples, or of groups, that each rung judges on. Empty: `growth.judge_samples` at each rung."""


def rounds_of(limits: GrowthConfig, fence_steps: Sequence[int]) -> int:
    """Return the number of rounds between the snapshot of a tournament and its verdict.

    Without `growth.rungs`, this is `growth.due_rounds`. With rungs, the rounds hold the last rung, but at most
    `MOST_OF_A_RUN` of the run, and at least one round.

    Args:
        fence_steps: The optimizer step of each fence.
    """
    if limits.rungs is None:
        return limits.due_rounds
    length = fence_steps[1]
    most = _share(fence_steps[-1], MOST_OF_A_RUN)
    rounds = math.ceil(min(limits.rungs[-1], most) / length)
    return max(1, rounds if rounds * length <= most else most // length)


def first_fence_of(limits: GrowthConfig, fence_steps: Sequence[int]) -> int:
    """Return the first fence at which a seed may germinate. It may be after the last fence of a short run."""
    reached = [fence for fence, step in enumerate(fence_steps) if step >= limits.first_step]
    return max(limits.first_fence, reached[0] if reached else len(fence_steps))


def tournaments_of(limits: GrowthConfig, fence_steps: Sequence[int]) -> int:
    """Return the largest number of tournaments that a run can hold one after the other, at least 1.

    The last one ends so early that its seed can still be fossilised.
    """
    fit = _verdicts_that_fit(limits, fence_steps)
    return fit if limits.max_tournaments is None else min(fit, limits.max_tournaments)


def next_look(limits: GrowthConfig, fence_steps: Sequence[int], began: int, fence: int) -> int | None:
    """Return the fence at which candidates that G2 refused at `fence` are judged again. None: they are not.

    The looks are as far apart as the rounds of a tournament. The last look is at `LAST_LOOK` of the run at most, and so
    early that an adopted seed can still be fossilised.

    Args:
        began: The fence at which their tournament began.
    """
    rounds, last_step = rounds_of(limits, fence_steps), _share(fence_steps[-1], LAST_LOOK)
    due, most = fence + rounds, limits.max_looks
    late = due > _last_verdict(limits, fence_steps) or fence_steps[due] > last_step
    enough = most is not None and fence >= began + (1 + most) * rounds
    return None if late or enough or not limits.beside else due


def looks_of(limits: GrowthConfig, fence_steps: Sequence[int]) -> int:
    """Return the largest number of times that refused candidates of one tournament are judged again."""
    began = first_fence_of(limits, fence_steps)
    looks, fence = 0, began + rounds_of(limits, fence_steps)
    while (due := next_look(limits, fence_steps, began, fence)) is not None:
        looks, fence = looks + 1, due
    return looks


def candidates_of(limits: GrowthConfig, fence_steps: Sequence[int], seeds: int, *, look: bool) -> int:
    """Return the number of candidates among which the chance of a false pass is divided, for the limit of the placebos.

    Args:
        seeds: Number of candidates in each tournament. A later look counts as many, because its candidates were chosen
            among all of these.
        look: See `number_of_tests`.
    """
    shares = seeds * _shares(limits, fence_steps)
    return shares if look else math.ceil(shares / LOOKS_AS_TOURNAMENT)


def number_of_tests(limits: GrowthConfig, fence_steps: Sequence[int], *, look: bool) -> float:
    """Return the number of tests among which G2 divides the chance of a false pass, for one verdict; see
    `growth.tests`. It is not always whole.

    A tournament has the chance of `LOOKS_AS_TOURNAMENT` later looks, so that later looks hardly make the verdicts of
    tournaments stricter. The chances of all verdicts that a run can hold add up to `growth.false_pass` or less.

    Args:
        look: True: for a later look at refused candidates. False: for the end of a tournament.
    """
    if limits.tests == "candidates":
        return limits.max_tests
    shares = _shares(limits, fence_steps)
    return shares if look else shares / LOOKS_AS_TOURNAMENT


def course(limits: GrowthConfig, fence_steps: Sequence[int], fence: int, seeds: int) -> Course:
    """Return the rungs of a tournament that begins at a fence.

    With `growth.rungs`, the last rung is the due fence. If n rungs do not fit, rung i is at most i/n of the whole, so a
    run of 150 steps has 20, 40 and 60 for 20, 60 and 120. A tournament of one or two seeds has only the last rung.

    Args:
        seeds: Number of seeds in the tournament.
    """
    rounds = rounds_of(limits, fence_steps)
    length = fence_steps[fence + rounds] - fence_steps[fence]
    if limits.rungs is None:
        length = min(length, limits.probe_steps or length)
        early = seeds > 2 and limits.halving_step < length
        return Course(rounds, (limits.halving_step, length) if early else (length,), ())
    count, units = len(limits.rungs), limits.rung_samples or ()
    fitted = [min(step, length * place // count) for place, step in enumerate(limits.rungs[:-1], 1)]
    kept = [place for place, step in enumerate(fitted) if step > max((0, *fitted[:place]))] if seeds > 2 else []
    steps = (*(fitted[place] for place in kept if fitted[place] < length), length)
    return Course(rounds, steps, (*(units[place] for place in kept[: len(steps) - 1]), units[-1]) if units else ())


def survivors(ranked: Sequence[T], rung: int, *, within: bool = False) -> Sequence[T]:
    """Return the forks that continue after a rung, the best first: half after the first rung, `FEW` after later ones.

    Args:
        ranked: The forks, the best first.
        rung: Number of the rung, from 0. The last rung of a tournament drops no fork, so it is not asked.
        within: True if the best fork is not better than the placebos. Then the share `SOFT` continues, because the rank
            shows little.
    """
    count = len(ranked)
    if within:
        return ranked[: -(-count * SOFT[0] // SOFT[1])]
    return ranked[: math.ceil(count / 2) if rung == 0 else FEW]


def field_sizes(seeds: int, rungs: int, *, within: bool = False) -> Iterator[int]:
    """Yield the number of forks that train up to each rung.

    Args:
        within: True if the best fork is at no rung better than the placebos. False: it is at each rung.
    """
    running: Sequence[int] = range(seeds)
    for rung in range(rungs):
        yield len(running)
        running = survivors(running, rung, within=within)


def _share(whole: int, of: tuple[int, int]) -> int:
    return whole * of[0] // of[1]


def _shares(limits: GrowthConfig, fence_steps: Sequence[int]) -> int:
    """Return the largest number of shares of the chance that a run can use: one for each later look,
    `LOOKS_AS_TOURNAMENT` for each tournament. Only one tournament or look can run at a time.
    """
    tournaments = tournaments_of(limits, fence_steps)
    left = _verdicts_that_fit(limits, fence_steps) - tournaments
    return LOOKS_AS_TOURNAMENT * tournaments + min(left, tournaments * looks_of(limits, fence_steps))


def _last_verdict(limits: GrowthConfig, fence_steps: Sequence[int]) -> int:
    """Return the last fence at which a seed can pass G2 and still be fossilised."""
    return len(fence_steps) - 1 - FENCES_OF_WATCH - limits.probation_rounds


def _verdicts_that_fit(limits: GrowthConfig, fence_steps: Sequence[int]) -> int:
    """Return the number of verdicts, one after the other, for which a run has enough rounds. At least 1."""
    rounds = _last_verdict(limits, fence_steps) - first_fence_of(limits, fence_steps)
    return max(1, rounds // rounds_of(limits, fence_steps))
