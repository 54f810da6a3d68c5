"""The pairs that a tournament tries if it cannot try all: many blueprints, and each slot."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from esper.leyline.decisions import Pair
from esper.tamiyo.fields import in_turn, spread

NAMES = ("norm", "low_rank", "mlp", "conv", "attention", "block")


def pairs(slots: int) -> list[Pair]:
    return [
        Pair(slot=f"s{slot:02}", blueprint_id=name, risk=0.1 * risk, parameters=1, flops=1, mesh=())
        for slot, (risk, name) in product(range(slots), enumerate(NAMES))
    ]


def test_a_tournament_that_can_try_all_pairs_tries_them_in_the_order_of_risk() -> None:
    found = spread(list(reversed(pairs(2))), 12)
    assert [(one.blueprint_id, one.slot) for one in found] == list(product(NAMES, ("s00", "s01")))


@pytest.mark.parametrize(("slots", "most"), [(8, 24), (3, 12), (4, 6), (40, 24), (1, 4)])
def test_fewer_pairs_than_there_are_cover_slots_and_blueprints_evenly(slots: int, most: int) -> None:
    found = spread(pairs(slots), most)
    assert len({(one.slot, one.blueprint_id) for one in found}) == len(found) == most
    by_slot, by_name = Counter(one.slot for one in found), Counter(one.blueprint_id for one in found)
    assert len(by_slot) == min(slots, most)
    assert max(by_slot.values()) - min(by_slot.values()) <= 1
    assert len(by_name) == min(len(NAMES), most)
    assert [one.risk for one in found] == sorted(one.risk for one in found)
    places = sorted(int(slot[1:]) for slot in by_slot)
    assert abs(places[0] - (slots - 1 - places[-1])) <= 1  # as near to the first slot as to the last


def test_pairs_in_turn_begin_with_the_best_of_each_slot() -> None:
    ordered = [("a", "x"), ("a", "y"), ("a", "z"), ("b", "z"), ("c", "x"), ("b", "y")]
    assert in_turn(ordered) == [("a", "x"), ("b", "z"), ("c", "x"), ("a", "y"), ("b", "y"), ("a", "z")]
    assert in_turn([]) == []
