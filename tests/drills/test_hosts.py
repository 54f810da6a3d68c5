"""Drills of other hosts: with the config of the zoo, a seed stays in each of them, and a drill has the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from drills.choosing import chosen
from drills.drill_runner import DrillRunner
from drills.task_under_drill import TaskUnderDrill

ZOO = Path(__file__).parents[1] / "zoo"
HOSTS = ("tasks_images.py:residual_with_groups", "tasks_sequences.py:an_lstm_and_attention_that_return_tuples")


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_a_drill_of_a_host_of_the_zoo_has_the_same_bits(host: str) -> None:
    (drill,) = chosen(["reports-damaged"], every=False, file=None)
    with DrillRunner(TaskUnderDrill.named(f"{ZOO}/{host}", ZOO / "drills.toml", {}, seed=0)) as runner:
        outcome = runner.run_one(drill)
        last = runner.undisturbed().summary.rounds
        assert runner.undisturbed().middle + 3 < last, "drills of several deaths need rounds after the middle"
    assert (outcome.why, outcome.same_bits) == ("", True)
