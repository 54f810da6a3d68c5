"""One run of useless seeds: its tournaments, and whether the gate G2 accepts the first seed of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

from esper.errors import ConfigError
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints.placebos import USELESS, useless_name
from esper.leyline.decisions import Hold
from esper.leyline.evidence import best_first
from esper.leyline.incubation import IncubationResult
from esper.leyline.reports import TOO_SMALL
from esper.leyline.slots import SlotSpec
from esper.setup.candidates import first_tournament
from esper.setup.null_tournament import KEY, Named, NullTournament, NullVerdict
from esper.setup.survey import Survey
from esper.tamiyo.fields import in_turn
from esper.tolaria.trainer import never

FIRST_NUMBER = 1000
"""Number of the first useless candidate. The placebos of a tournament have smaller numbers, so their weights differ."""


def null_run(survey: Survey, size: int, told: Callable[[NullVerdict], None], *, whole: bool) -> list[NullVerdict]:
    """Train the host, hold tournaments of useless seeds one after the other, and judge the first seed of each by G2.

    The run ends with the first verdict that accepts a seed. Refused seeds are judged again later; see `growth.beside`.
    Later tournaments are between the best seeds of the first; see `growth.best_again`. As with the default policy, none
    is held if later looks refused these seeds, too.

    Args:
        size: Number of candidates in the first tournament.
        told: Function that is called after each verdict.
        whole: True: hold as many tournaments and later looks as a run can hold. False: hold the first tournament only.
    """
    growth, found = survey.config.growth, list[NullVerdict]()
    trainer = survey.trainer(KEY.run_id, KEY.generation, "tolaria", never)
    named, fence, left = distinct(survey.specs, size), survey.first_fence, growth.max_tests
    for number in range(1, 1 + (survey.tournaments if whole else 1)):
        named = named[:left]
        if not named or fence > survey.last_germination:
            break
        with temporary_rng(0):
            trainer.train_to(survey.fence_steps[fence])
            held = NullTournament(survey, fence, named, trainer.snapshot(), size)
        left, ended = left - len(named), held.result
        for look in count():
            found.append(held.verdict(number, look))
            told(found[-1])
            if found[-1].accepted:
                return found
            if not (went_on := held.go_on(left) if whole else 0):
                break
            left -= went_on
        if growth.best_again is not None and survey.looks and set(found[-1].reasons) <= TOO_SMALL:
            break
        named = _best(named, ended, growth.best_again) if number == 1 else named
        fence = held.due_fence
    return found


def candidates(survey: Survey, runs: int) -> int:
    """Return the number of candidates in the first tournament of a run. Raises: ConfigError: each of the `runs` holds
    none.
    """
    first = first_tournament(survey)
    if isinstance(first, Hold):
        known = first.measured is not None and first.limit is not None
        figures = f" ({first.measured:g}, limit {first.limit:g})" if known else ""
        raise ConfigError("--null", runs, f"a run of this config holds no tournament: {first.detail}{figures}")
    return len(first)


def distinct(specs: Sequence[SlotSpec], size: int) -> list[Named]:
    """Return `size` useless candidates that differ from each other.

    Kinds take turns, and each kind goes over the slots. A kind without random weights has at most one candidate in a
    slot, because two would have the same bits. There is one dead candidate, because its output is 0 in every slot.
    """
    return list(islice(_turns(specs), size))


def _turns(specs: Sequence[SlotSpec]) -> Iterator[Named]:
    numbers, most = count(FIRST_NUMBER), {"bias": len(specs), "noise": len(specs), "dead": 1}
    for turn in count():
        for kind in USELESS:
            if kind not in most or turn < most[kind]:
                yield specs[turn % len(specs)], useless_name(kind, next(numbers))


def _best(named: Sequence[Named], result: IncubationResult, most: int | None) -> list[Named]:
    """Return the candidates of a later tournament, chosen as the default policy chooses them; see `in_turn`.

    Args:
        most: Largest number of candidates. None: all of them.
    """

    def place(at: int) -> tuple[bool, float]:
        fork = result.forks[at]
        dropped = fork.steps < fork.required_steps
        return dropped, best_first(fork.pick.relative_gain if fork.pick is not None else 0.0)

    ordered = [(named[at][0].path, named[at][1]) for at in sorted(range(len(named)), key=place)]
    by_name = {(spec.path, name): (spec, name) for spec, name in named}
    return [by_name[pair] for pair in in_turn(ordered)[:most]]
