"""The emergency level of each fence, from the signals that were read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esper.emergency.level import LevelHistory
from esper.leyline.signals import Level


def levels(history: LevelHistory, until: int = 8) -> list[Level | None]:
    return [history.at(fence) for fence in range(until)]


def history(*heard: tuple[int, Level], calm_fences: int = 3) -> LevelHistory:
    found = LevelHistory(calm_fences)
    for fence, level in heard:
        found.add(fence, level)
    return found


CONSERVATIVE, ELEVATED = Level.CONSERVATIVE, Level.ELEVATED


def test_a_level_is_left_after_the_calm_fences() -> None:
    assert levels(history((2, CONSERVATIVE))) == [None, None, *[CONSERVATIVE] * 3, None, None, None]


def test_another_signal_prolongs_it_and_a_lower_one_does_not() -> None:
    assert levels(history((1, CONSERVATIVE), (3, CONSERVATIVE))) == [None, *[CONSERVATIVE] * 5, None, None]
    found = levels(history((1, CONSERVATIVE), (3, ELEVATED)))
    assert found == [None, *[CONSERVATIVE] * 3, ELEVATED, ELEVATED, None, None]


def test_a_halt_is_no_level_of_a_fence() -> None:
    assert levels(history((1, Level.HALT))) == [None] * 8


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(Level)), max_size=40), st.integers(1, 6))
def test_the_level_depends_on_what_was_heard_and_not_on_the_order(heard: list[tuple[int, Level]], calm: int) -> None:
    there, back = history(*heard, calm_fences=calm), history(*reversed(heard), calm_fences=calm)
    for fence in range(40):
        recent = [level for at, level in heard if level < Level.HALT and fence - calm < at <= fence]
        assert there.at(fence) is back.at(fence) is max(recent, default=None)
