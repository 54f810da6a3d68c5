"""Seeds of several copies: one record, one verdict; stopped and resumed, they give the same bits."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper import resume, run
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.errors import Drained
from esper.leyline.stages import IN_HOST
from esper.testing import StopAt
from esper.user_code.task_reference import load_task

ZOO = runpy.run_path(str(Path(__file__).parent / "zoo.py"))
RUNNING, config = ZOO["RUNNING"], ZOO["config"]

DEPTHWISE = {"growth__blueprints": {"*": ["depthwise_separable"]}}
PLACEBOS = {"growth__placebos": 2, "growth__rungs": (2, 4), "growth__rung_samples": (8, 24)}

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, at what users write


def ended(path: Path) -> list[dict[str, Any]]:
    return [entry.body for entry in read_past(path).entries if entry.kind is RecordKind.INCUBATION_ENDED]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("regression", {}),
        pytest.param("regression", PLACEBOS, marks=pytest.mark.slow),
        pytest.param("batch_norm", {"growth__due_rounds": 2, **DEPTHWISE}, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_three_copies_in_a_seed_and_placebos_is_stopped_resumed_copied_and_loaded_with_the_same_bits(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    task, reference = load_task(RUNNING[name])
    keys = {"growth__copies": 3, "growth__parameter_budget": 50.0, "growth__memory_budget": 50.0, **settings}
    whole = run(task, config(tmp_path / "whole", **keys), reference=reference)
    stop = StopAt(3)
    with pytest.raises(Drained):
        run(task, config(tmp_path / "run", **keys), drain=stop.drain, progress=stop, reference=reference)
    again = resume(tmp_path / "run")
    assert again.weights_sha256 == whole.weights_sha256
    assert {seed.copies for seed in whole.seeds} == {3}
    inside = [seed for seed in whole.seeds if seed.stage in IN_HOST]
    assert whole.params_end == whole.params_start + sum(seed.parameters for seed in inside)
    asked = settings.get("growth__placebos")
    assert inside or asked  # forks of so few steps do not exceed placebos
    placebos = [body["placebos"] for body in ended(tmp_path / "run") if "placebos" in body]
    assert placebos == [body["placebos"] for body in ended(tmp_path / "whole") if "placebos" in body]
    assert {len(told) for told in placebos} == ({asked} if asked else set())
    commands = [entry.body for entry in read_past(tmp_path / "run").entries if entry.kind is RecordKind.COMMAND]
    assert {one["copies"] for body in commands for one in body["candidates"]} == {3}
    loaded = esper.load(tmp_path / "run")
    assert whole.network is not None
    twin = copy.deepcopy(loaded)
    state = whole.network.state_dict()
    assert state.keys() == loaded.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in twin.state_dict().items())
