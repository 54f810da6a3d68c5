"""Ordinary PyTorch: what a survey accepts runs, is stopped and resumed with the same bits; the rest is refused."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from esper.config import RunConfig
from esper.errors import ConfigError, Drained
from esper.loop import resume, run
from esper.prospect import survey
from esper.references import load_task
from esper.testing import StopAt, tiny_config

HERE = Path(__file__).parent
REFUSED = runpy.run_path(str(HERE / "tasks_refused.py"))["REFUSED"]

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, at what users write


def zoo() -> dict[str, str]:
    """The reference of every task that must run, by its name."""
    found = {}
    for file in sorted(HERE.glob("tasks_[!_]*.py")):
        for name, value in runpy.run_path(str(file)).items():
            if inspect.isfunction(value) and not name.startswith("_") and value.__annotations__ == {"return": "Task"}:
                found[name] = f"{file}:{name}"
    return {name: place for name, place in found.items() if name not in REFUSED}


ZOO = zoo()
QUICK = ("class_weights", "lengths_that_differ", "autocast_inside_the_forward", "old_weight_norm", "batch_norm")
"""Those of `make test`; all others are marked slow."""
TASKS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]


def config(path: Path) -> RunConfig:
    """Short rounds, and gates that let most seeds pass: what is resumed shall have seeds in it."""
    return tiny_config(
        run__dir=str(path),
        growth__min_samples=8,
        growth__judge_samples=24,
        growth__ramp_steps=4,
        growth__halving_step=2,
        growth__probation_rounds=1,
        growth__candidates=3,
        growth__margin=1e-9,
        growth__false_pass=0.99,
        growth__max_tests=1,
    )


@pytest.mark.parametrize("name", TASKS)
def test_what_a_survey_accepts_runs_and_ends_with_the_same_bits_after_a_stop(name: str, tmp_path: Path) -> None:
    task, reference = load_task(ZOO[name])
    whole = run(task, config(tmp_path / "whole"), reference=reference)
    with pytest.raises(Drained):
        run(task, config(tmp_path / "run"), drain=(watch := StopAt(3)).drain, progress=watch, reference=reference)
    again = resume(tmp_path / "run")
    assert again.weights_sha256 == whole.weights_sha256
    assert (again.test_loss, again.test_metrics) == (whole.test_loss, whole.test_metrics)
    assert again.rounds == 6
    print(name, [seed.stage for seed in whole.seeds], whole.start_test_loss, whole.test_loss)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_in_one_line_by_field_value_and_mend(name: str) -> None:
    make, pattern = REFUSED[name]
    settings: dict[str, Any] = {"growth__judge_samples": 64, "growth__min_samples": 16}
    with pytest.raises(ConfigError) as caught:
        survey(make(), tiny_config(**settings))
    said = str(caught.value)
    assert re.search(pattern, said), said
    assert "\n" not in said
