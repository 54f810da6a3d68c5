"""The tiny task of drills grows with any run seed, so a drill that needs a seed of the host can be made with each."""

from __future__ import annotations

import pytest

from drills.choosing import chosen
from drills.drill_runner import DrillRunner
from drills.task_under_drill import TaskUnderDrill

IN_CHECK = 5
"""With this run seed, no seed was grafted in an earlier tiny task."""


@pytest.mark.parametrize(
    "seed",
    [pytest.param(seed, marks=pytest.mark.slow if seed == IN_CHECK else pytest.mark.torture) for seed in range(10)],
)
def test_a_seed_is_grafted_and_stays_and_a_drill_has_the_same_bits(seed: int) -> None:
    (drill,) = chosen(["reports-damaged"], every=False, file=None)
    with DrillRunner(TaskUnderDrill.tiny(seed)) as runner:
        moments = runner.undisturbed()
        stages = [moments.first_entry(stage) for stage in ("BLENDING", "SHADOWING", "PROBATIONARY", "FOSSILIZED")]
        assert moments.first_tournament < stages[0] < moments.middle
        assert stages == sorted(set(stages))
        outcome = runner.run_one(drill)
    assert (outcome.why, outcome.same_bits) == ("", True)
