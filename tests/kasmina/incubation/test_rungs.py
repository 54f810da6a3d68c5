"""Rungs: where they stand in a run of any length, and who goes on after each."""

from __future__ import annotations

import math
from typing import Any

import pytest
from growing import graft_plan
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import ConfigError
from esper.kasmina.incubation.rungs import (
    candidates_of,
    course,
    field_sizes,
    first_fence_of,
    looks_of,
    next_look,
    number_of_tests,
    rounds_of,
    survivors,
    tournaments_of,
)
from esper.leyline.incubation import IncubationOrder
from esper.testing import tiny_config

RECIPE = {"growth__rungs": (20, 60, 120), "growth__rung_samples": (128, 256, 512)}


def fences(total: int, length: int) -> tuple[int, ...]:
    return (*range(0, total, length), total)


def limits(**settings: Any) -> Any:
    return tiny_config(**settings).growth


@pytest.mark.parametrize(
    ("total", "length", "rounds", "steps"),
    [(600, 20, 6, (20, 60, 120)), (600, 25, 5, (20, 60, 125)), (150, 10, 6, (20, 40, 60)), (150, 20, 3, (20, 40, 60))],
)
def test_the_rungs_of_the_recipe_fit_the_runs_that_were_tried(
    total: int, length: int, rounds: int, steps: tuple[int, ...]
) -> None:
    found = course(limits(**RECIPE), fences(total, length), 1, seeds=9)
    assert (found.rounds, found.steps, found.units) == (rounds, steps, (128, 256, 512))
    alone = course(limits(**RECIPE), fences(total, length), 1, seeds=2)
    assert (alone.steps, alone.units) == (steps[-1:], (512,))


@given(
    rungs=st.sets(st.integers(1, 300), min_size=1, max_size=6).map(sorted),
    length=st.integers(1, 60),
    rounds=st.integers(2, 80),
    seeds=st.integers(1, 30),
)
def test_rungs_ascend_end_at_a_fence_and_leave_most_of_a_run(
    rungs: list[int], length: int, rounds: int, seeds: int
) -> None:
    config = limits(growth__rungs=tuple(rungs), growth__rung_samples=tuple(range(1, len(rungs) + 1)))
    steps = fences(length * rounds, length)
    found = course(config, steps, 0, seeds)
    assert list(found.steps) == sorted({*found.steps})
    assert found.steps[0] > 0
    assert found.steps[-1] == steps[rounds_of(config, steps)]
    assert found.rounds == 1 or found.steps[-1] <= 0.4 * steps[-1]
    assert len(found.units) == len(found.steps) <= (len(rungs) if seeds > 2 else 1)
    assert found.units[-1] == len(rungs)
    assert list(found.units) == sorted(found.units)


@pytest.mark.parametrize(
    ("settings", "total", "count"),
    [
        ({}, 600, 25),  # from fence 1, one round each; a seed is watched for the last 4 of the 30 rounds
        ({"growth__due_rounds": 4}, 600, 6),
        ({**RECIPE}, 600, 4),  # 6 rounds each
        ({**RECIPE, "growth__max_tournaments": 3}, 600, 3),
        ({**RECIPE}, 320, 1),  # a second one would end at fence 13, and a seed is watched from fence 12 on
        ({**RECIPE}, 340, 2),
        ({"growth__due_rounds": 4}, 60, 1),
    ],
)
def test_a_run_is_tested_as_often_as_it_can_hold_tournaments(settings: dict[str, Any], total: int, count: int) -> None:
    steps = fences(total, 20)
    by_tournaments = limits(growth__tests="tournaments", **settings)
    assert tournaments_of(by_tournaments, steps) == number_of_tests(by_tournaments, steps, look=False) == count
    for look in (False, True):
        assert number_of_tests(limits(growth__max_tests=77, **settings), steps, look=look) == 77


@pytest.mark.parametrize(
    ("total", "most", "looks"),
    [
        (600, None, [280, 400]),  # the first verdict is at step 160
        (600, 1, [280]),
        (3000, 2, [280, 400]),
        (150, None, []),  # the first verdict is at step 100, and of 150 steps 40 are left to watch
    ],
)
def test_refused_candidates_are_looked_at_again_up_to_four_fifths_of_a_run_and_each_look_is_paid_for(
    total: int, most: int | None, looks: list[int]
) -> None:
    steps = fences(total, 10)
    beside = {**RECIPE, "growth__entry": "adopt", "growth__beside": 2, "growth__first_step": 40}
    config = limits(growth__tests="tournaments", growth__max_tournaments=3, growth__max_looks=most, **beside)
    began = first_fence_of(config, steps)
    fence, found = began + rounds_of(config, steps), []
    while (due := next_look(config, steps, began, fence)) is not None:
        found.append(steps[due])
        fence = due
    assert found == looks
    assert looks_of(config, steps) == len(looks)
    assert next_look(config.model_copy(update={"beside": 0}), steps, began, began + rounds_of(config, steps)) is None


@pytest.mark.parametrize(
    ("total", "tournaments", "most", "shares"),
    [
        (600, 1, 2, 12),
        (600, 2, 2, 22),  # a tournament up to step 520 after looks at steps 280 and 400
        (580, 2, 2, 21),
        (3000, 2, 2, 24),
        (3000, 2, 0, 20),
        (3000, None, 1, 240),  # 24 tournaments fit; a look takes the time of a tournament
    ],
)
def test_a_tournament_has_the_chance_of_ten_looks_and_a_run_no_more_than_asked(
    total: int, tournaments: int | None, most: int, shares: int
) -> None:
    beside = {**RECIPE, "growth__entry": "adopt", "growth__beside": 2, "growth__first_step": 40}
    more = {"growth__max_tournaments": tournaments, "growth__max_looks": most, "growth__probation_rounds": 2}
    config, steps = limits(growth__tests="tournaments", **beside, **more), fences(total, 20)
    assert number_of_tests(config, steps, look=True) == shares
    assert number_of_tests(config, steps, look=False) == shares / 10
    assert candidates_of(config, steps, 7, look=True) == 7 * shares
    assert candidates_of(config, steps, 7, look=False) == math.ceil(7 * shares / 10)


@given(count=st.integers(0, 40), rung=st.integers(0, 5), within=st.booleans())
def test_the_best_go_on_and_never_none_of_some(count: int, rung: int, within: bool) -> None:
    ranked = list(range(count))
    kept = survivors(ranked, rung, within=within)
    assert list(kept) == ranked[: len(kept)]
    assert (len(kept) > 0) == (count > 0)
    expected = math.ceil(0.7 * count - 1e-9) if within else math.ceil(count / 2) if rung == 0 else min(3, count)
    assert len(kept) == expected


def test_a_field_of_24_shrinks_to_12_and_then_3() -> None:
    assert list(field_sizes(24, 3)) == [24, 12, 3]


def test_todays_halving_is_two_rungs_and_an_order_of_it_has_the_json_of_before() -> None:
    config = limits()
    found = course(config, fences(160, 40), 1, seeds=3)
    assert (found.rounds, found.steps, found.units) == (1, (10, 40), ())
    assert course(config, fences(160, 40), 1, seeds=2).steps == (40,)
    plan = graft_plan()
    fields: dict[str, Any] = {"order_id": "a", "generation": 1, "fence": 1, "due_fence": 2, "first_step": 0}
    order = IncubationOrder(
        **fields, last_step=40, halving_step=18, plans=(plan,), batch_size=8, base_flops=1, seed_flops=(1,)
    )
    assert order.stops == ((18, None), (40, None))
    assert order.model_dump().keys().isdisjoint({"rungs", "rung_units"})
    later = order.model_copy(update={"halving_step": None, "rungs": (20, 40), "rung_units": (8, 16)})
    assert IncubationOrder.model_validate_json(later.model_dump_json()).stops == ((20, 8), (40, 16))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"growth__rungs": (20, 20)}, "growth.rungs = (20, 20): give ascending steps, such as [20, 60, 120]"),
        ({"growth__rung_samples": (8,)}, "give one number for each of the 0 rungs in growth.rungs"),
        ({"growth__rungs": (2, 4), "growth__rung_samples": (8,)}, "give one number for each of the 2 rungs"),
    ],
)
def test_rungs_that_cannot_be_climbed_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**settings)
    assert said in str(caught.value)
