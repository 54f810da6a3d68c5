"""What is open at a fence: all of it, in the order of the dry run; or a hold with the figure that closed it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import deciding
import pytest
from deciding import make_decision, make_pair, make_slot, make_state

from esper.leyline.decisions import Hold, HoldReason, Pair
from esper.tamiyo.eligibility import eligible, tournaments_spent

WINDOW = replace(deciding.WINDOW, first_fence=2)


OVER = "a seed with a ramp of 75 steps could not be fossilised before the end"


def ids(found: tuple[Pair, ...] | Hold) -> list[tuple[str, str]]:
    assert not isinstance(found, Hold), found
    return [(pair.slot, pair.blueprint_id) for pair in found]


def test_every_pair_of_an_open_slot_is_eligible_in_the_order_of_the_dry_run() -> None:
    state = make_state()

    assert eligible(state, WINDOW) == state.options


@pytest.mark.parametrize(
    ("changes", "reason", "detail", "measured", "limit"),
    [
        ({"fence": 1}, HoldReason.NO_OPEN_SLOT, "slots open later", 1, 2),
        ({"fence": 34}, HoldReason.GROWTH_OVER, OVER, 34, 33),
        ({"incubating": True}, HoldReason.NO_OPEN_SLOT, "a tournament is in flight", None, None),
        ({"tests_used": 400}, HoldReason.BUDGET_SPENT, "tests of the run", 400, 400),
        ({"added_parameters": 901}, HoldReason.BUDGET_SPENT, "parameters left for the smallest seed", 100, 99),
    ],
)
def test_what_closes_everything_is_named_with_its_figure(
    changes: dict[str, Any], reason: HoldReason, detail: str, measured: float | None, limit: float | None
) -> None:
    state = make_state(**changes)

    assert eligible(state, WINDOW) == Hold(
        fence=state.fence, reason=reason, detail=detail, measured=measured, limit=limit
    )


@pytest.mark.parametrize(
    "changes", [{"fence": 2}, {"fence": 33}, {"tests_used": 399}, {"added_parameters": 900}], ids=str
)
def test_what_just_meets_a_limit_is_open(changes: dict[str, Any]) -> None:
    assert len(ids(eligible(make_state(**changes), WINDOW))) == 2


def test_a_tournament_beyond_the_last_holds_and_a_replica_does_not() -> None:
    spent, pair = make_state(tournaments_used=3, tournaments_allowed=3), make_pair("mlp")
    hold = tournaments_spent(spent, make_decision(pair))
    assert hold is not None
    assert (hold.reason, hold.measured, hold.limit) == (HoldReason.BUDGET_SPENT, 3, 3)
    assert tournaments_spent(spent, make_decision(pair, replica_of="seed-1")) is None
    for state in (make_state(tournaments_used=2, tournaments_allowed=3), make_state(tournaments_used=99)):
        assert tournaments_spent(state, make_decision(pair)) is None


def test_full_slots_hold() -> None:
    full = eligible(make_state(slots=(make_slot(occupied=3),)), WINDOW)

    assert isinstance(full, Hold)
    assert (full.reason, full.detail, full.measured) == (HoldReason.NO_OPEN_SLOT, "every slot is full", 1)
    assert len(ids(eligible(make_state(slots=(make_slot(occupied=2),)), WINDOW))) == 2
    unclean = make_slot().model_copy(update={"closed": True})
    closed = eligible(make_state(slots=(unclean,)), WINDOW)
    assert isinstance(closed, Hold)
    assert closed.detail == "every slot is full, or closed by a reset that failed"


def test_embargoes_hold() -> None:
    bound = eligible(make_state(slots=(make_slot(embargoed=("mlp", "norm")),)), WINDOW)

    assert isinstance(bound, Hold)
    assert (bound.reason, bound.detail) == (HoldReason.NO_OPEN_SLOT, "every open pair is embargoed")


def test_a_full_slot_an_embargo_and_a_seed_too_large_close_only_their_own_pairs() -> None:
    state = make_state(
        slots=(make_slot("a", occupied=3), make_slot("b", embargoed=("mlp",)), make_slot("c")),
        options=(
            *(make_pair(name, slot) for slot in "abc" for name in ("mlp", "norm")),
            make_pair("block", "c", parameters=1001),
        ),
    )

    assert ids(eligible(state, WINDOW)) == [("b", "norm"), ("c", "mlp"), ("c", "norm")]


def test_a_pair_that_could_never_pass_its_budgets_is_not_tried() -> None:
    large, dear, fit = (
        make_pair("large", parameters=99),
        make_pair("dear", flops=99),
        make_pair("fit", flops=9, parameters=9),
    )
    window = replace(WINDOW, seed_parameters=50, seed_flops=50)
    assert ids(eligible(make_state(options=(large, dear, fit)), window)) == [("body", "fit")]
    held = eligible(make_state(options=(large, dear)), window)
    assert isinstance(held, Hold)
    assert held.reason is HoldReason.BUDGET_SPENT
