"""Tasks of the zoo end on actors with the bits of one process: five in `make check`, all in `make torture`."""

from __future__ import annotations

import os
import random
import runpy
from pathlib import Path

import pytest

import esper
from actors.embedded_ray import EmbeddedRay
from esper import OnRay
from esper.user_code.task_reference import load_task

ZOO = runpy.run_path(str(Path(__file__).parents[1] / "zoo" / "zoo.py"))
DRAW = os.environ.get("ZOO_DRAW", "1")
"""It chooses the five and stands in the name of each test: `ZOO_DRAW=2` chooses others."""
FIVE = random.Random(DRAW).sample(sorted(ZOO["RUNNING"]), 5)
CASES = [
    *(pytest.param(name, id=f"{name}, {DRAW}") for name in FIVE),
    *(pytest.param(name, marks=pytest.mark.torture) for name in sorted(set(ZOO["RUNNING"]) - set(FIVE))),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, at what users write
@pytest.mark.parametrize("name", CASES)
def test_a_task_of_the_zoo_ends_on_actors_with_the_bits_of_one_process(
    embedded: EmbeddedRay, tmp_path: Path, name: str
) -> None:
    task, reference = load_task(ZOO["RUNNING"][name])
    patient = {"policy__deadline_s": 60.0, "ray__start_deadline_s": 200.0}  # that no load of a machine reaches
    alone = esper.run(task, ZOO["config"](tmp_path / "alone", **patient), reference=reference)
    together = esper.run(task, ZOO["config"](tmp_path / "run", **patient), on=OnRay(embedded), reference=reference)
    assert together.weights_sha256 == alone.weights_sha256
    assert together.twin_weights_sha256 == alone.twin_weights_sha256
    assert (together.test_loss, together.test_metrics) == (alone.test_loss, alone.test_metrics)
