"""A fixed sample of the catalogue, which `make check` runs. `make drills` runs the whole catalogue.

All but one of these drills need no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_private_workers import forked_workers

from drills.catalogue import CATALOGUE
from drills.drill_runner import DrillRunner
from drills.task_under_drill import TaskUnderDrill

SAMPLE = (
    *("policy-fails", "no-candidates", "no-channel-vector", "no-logits", "queue-full", "sink-down"),
    *("checkpoint-damaged", "reports-damaged", "disk-full-checkpoint"),
)
PAGE = Path(__file__).parents[2] / "docs" / "drills.md"


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[DrillRunner]:
    with forked_workers(request.config), DrillRunner(TaskUnderDrill.tiny(seed=0)) as runner:
        yield runner


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SAMPLE)
def test_a_drill_of_the_sample_passes(runner: DrillRunner, name: str) -> None:
    (drill,) = [one for one in CATALOGUE if one.name == name]
    outcome = runner.run_one(drill)
    assert (outcome.why, outcome.leaks) == ("", ())


def test_the_page_names_the_sample() -> None:
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith("`make check` runs a sample")]
    assert all(f"`{name}`" in line for name in SAMPLE)
    assert line.count("`") == 2 * (len(SAMPLE) + 1)
