"""The counts and seconds of a run so far."""

from __future__ import annotations

import pytest

from esper.flow.tally import Tally


def test_speed_counts_the_time_between_fences_alone_and_is_absent_before_the_first_round() -> None:
    tally = Tally()
    assert tally.steps_per_s is None
    with tally.fence(), tally.waiting():
        pass
    assert tally.steps_per_s is None
    with tally.training(20, 7):
        pass
    with tally.training(20, 9):
        pass
    assert (tally.steps, tally.trainer_flops) == (40, 320)
    assert tally.steps_per_s == 40 / tally.training_s
    assert tally.fence_wait_s <= tally.fences_s


def test_a_round_that_failed_counts_no_steps() -> None:
    tally = Tally()

    def fail() -> None:
        with tally.training(20, 7):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tally.steps, tally.trainer_flops) == (0, 0)
