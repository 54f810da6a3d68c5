"""A fork that is adopted goes from its manager to the trainer, and no death on the way changes a bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from adopting import SHORT, WHOLE

import esper
from actors.embedded_ray import EmbeddedRay
from esper import OnRay
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.errors import FaultInjected
from esper.flow.result import Result
from esper.ground.tensors import state_digest
from esper.testing import Bands, tiny_config, tiny_task

ADOPTING = SHORT | {"growth__finish": "better"}


RECIPES: dict[str, dict[str, Any]] = {"short": ADOPTING, "whole": WHOLE}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """Name of a recipe -> its run in one process."""

    @cache
    def run(recipe: str) -> Result:
        folder = tmp_path_factory.mktemp(recipe) / "run"
        return esper.run(tiny_task(), tiny_config(run__dir=str(folder), **RECIPES[recipe]))

    return run


def compare(together: Result, alone: Result) -> None:
    assert together.weights_sha256 == alone.weights_sha256
    assert together.twin_weights_sha256 == alone.twin_weights_sha256
    assert together.finish is not None
    assert together.finish == alone.finish
    assert state_digest(together.network.state_dict()) == alone.weights_sha256
    told = [
        [e.body for e in read_past(Path(one.run_dir)).entries if e.kind is RecordKind.ADOPTED]
        for one in (together, alone)
    ]
    digests = [[(one["fence"], one["before_sha256"], one["after_sha256"]) for one in each] for each in told]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 2


@pytest.mark.parametrize("managers", [2, *(pytest.param(number, marks=pytest.mark.torture) for number in (1, 3))])
def test_any_number_of_managers_adopts_with_the_bits_of_one_process(
    launch_tiny: Any, alone: Callable[[str], Result], managers: int
) -> None:
    compare(launch_tiny(growth__managers=managers, **ADOPTING), alone("short"))


def torture(*faults: dict[str, Any]) -> list[Any]:
    return [pytest.param(fault, marks=pytest.mark.torture) for fault in faults]


KILLS = [
    {"point": "kasmina.adoption_snapshot", "fault": "kill"},
    {"point": "tolaria.adoption_restored", "fault": "kill", "passage": 2},
    *torture(
        {"point": "kasmina.adoption_snapshot", "fault": "kill", "times": 2},
        {"point": "tolaria.adoption_restored", "fault": "kill"},
    ),
]
ENDS = torture(
    *(
        {"point": f"conductor.adoption_{moment}", "fault": "raise", "passage": passage}
        for moment in ("before", "snapshot", "journaled", "after")
        for passage in (1, 2)
    )
)


WITH = pytest.mark.parametrize("recipe", ["short", pytest.param("whole", marks=pytest.mark.torture)])
"""The whole recipe has tournaments of several rounds, copies and placebos."""


@WITH
@pytest.mark.parametrize("fault", KILLS)
def test_a_death_of_a_manager_or_of_the_trainer_in_an_adoption_changes_no_bit(
    launch_tiny: Any, alone: Callable[[str], Result], fault: dict[str, Any], recipe: str
) -> None:
    together = launch_tiny(growth__managers=2, faults=[fault], restarting=True, **RECIPES[recipe])
    assert together.fault_fired
    assert together.restarts == fault.get("times", 1)
    compare(together, alone(recipe))
    if recipe == "whole":
        assert esper.prove(launch_tiny.run_dir, tiny_task()).divergence is None


@WITH
@pytest.mark.parametrize("fault", ENDS)
def test_a_run_whose_conductor_ends_in_an_adoption_is_resumed_with_the_same_bits_and_proved(
    embedded: EmbeddedRay, launch_tiny: Any, alone: Callable[[str], Result], fault: dict[str, Any], recipe: str
) -> None:
    with pytest.raises(FaultInjected):
        launch_tiny(growth__managers=2, faults=[fault], **RECIPES[recipe])
    compare(esper.resume(launch_tiny.run_dir, tiny_task(), on=OnRay(embedded)), alone(recipe))
    assert esper.prove(launch_tiny.run_dir, tiny_task()).divergence is None


@pytest.mark.torture
def test_a_run_whose_live_host_overfits_ends_with_its_twin_as_in_one_process(launch_tiny: Any, tmp_path: Path) -> None:
    task, settings = tiny_task(train=Bands(128, key=1), epochs=60), {**ADOPTING, "growth__replicas": 1}
    alone = esper.run(task, tiny_config(run__dir=str(tmp_path / "alone"), **settings))
    together = launch_tiny(task=task, growth__managers=2, **settings)
    assert (together.ends_with, together.finish) == ("twin", alone.finish)
    assert together.weights_sha256 == together.twin_weights_sha256 == state_digest(together.network.state_dict())
    assert (together.test_loss, together.live_test_loss) == (alone.test_loss, alone.live_test_loss)
    assert together.incubator_gflops == alone.incubator_gflops


@pytest.mark.torture
def test_refused_candidates_train_on_over_the_death_of_a_manager_as_in_one_process(
    launch_tiny: Any, tmp_path: Path
) -> None:
    late = {"growth__entry": "adopt", "growth__beside": 2, "growth__replicas": 1, "growth__margin": 0.3}
    alone = esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "alone"), **late))
    fault = {"point": "kasmina.step", "fault": "kill", "step": 70}  # a fork that trains on
    together = launch_tiny(growth__managers=2, faults=[fault], restarting=True, **late)
    assert (together.fault_fired, together.restarts) == (True, 1)
    assert together.weights_sha256 == alone.weights_sha256
    assert together.twin_weights_sha256 == alone.twin_weights_sha256
    assert together.incubator_gflops == alone.incubator_gflops
