"""A small but real host ends with the same bits however it was disturbed: killed, on actors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.embedded_ray import EmbeddedRay
from esper import OnRay, resume, run
from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.config.joined import RunConfig, as_toml
from esper.flow.result import Result
from esper.leyline.slots import Kind
from esper.setup.survey import survey_of
from esper.testing import tiny_config
from esper.user_code.task_reference import load_task

pytestmark = pytest.mark.slow

TASK = f"{Path(__file__).parents[1]}/zoo/whole_host.py:task"


def config(run_dir: Path, **overrides: Any) -> RunConfig:
    """Three candidates to a tournament: the rest is as in the tiny run."""
    return tiny_config(run__dir=str(run_dir), growth__candidates=3, **overrides)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that nobody disturbed."""
    task, reference = load_task(TASK)
    return run(task, config(tmp_path_factory.mktemp("alone") / "run"), reference=reference)


def same(told: dict[str, Any], alone: Result) -> None:
    for name in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps", "trainer_gflops", "incubator_gflops"):
        assert told[name] == getattr(alone, name), name


def test_it_grows_and_has_slots_of_images_and_of_sequences(alone: Result, tmp_path: Path) -> None:
    assert {spec.kind for spec in survey_of(load_task(TASK)[0], config(tmp_path)).specs} == {Kind.NCHW, Kind.NTC}
    assert "FOSSILIZED" in [seed.stage for seed in alone.seeds]
    assert alone.twin_test_loss is not None


def test_it_ends_the_same_where_its_process_was_killed(tmp_path: Path, alone: Result) -> None:
    (tmp_path / "c.toml").write_text(as_toml(config(tmp_path / "run")))
    (tmp_path / "f.toml").write_text('[[faults]]\npoint = "tolaria.step"\nfault = "kill"\nstep = 107\n')
    words = ["run", TASK, "--config", "c.toml", "--faults", "f.toml", "--in-process"]
    killed = subprocess.run([sys.executable, "-m", "esper", *words], cwd=tmp_path, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert read_past(tmp_path / "run").commits[-1].fence >= 3
    same(resume(tmp_path / "run").as_json(), alone)


def test_it_ends_the_same_on_actors_of_which_the_trainer_died(
    embedded: EmbeddedRay, tmp_path: Path, alone: Result
) -> None:
    task, reference = load_task(TASK)
    dies = {"point": "tolaria.step", "fault": "kill", "step": 107}
    settings = config(tmp_path / "run", growth__managers=2)
    told = RunConfig.model_validate({**settings.model_dump(), "faults": [dies]})
    result = run(task, told, on=OnRay(embedded), reference=reference)
    same(result.as_json(), alone)
    assert [recovery.actors for recovery in result.recoveries] == [("tolaria",)]
    assert RecordKind.RECOVERED in [entry.kind for entry in read_past(tmp_path / "run").entries]


README = Path(__file__).parents[2] / "README.md"


@pytest.mark.integration
def test_the_first_command_of_the_readme_trains_the_default_task_on_actors(tmp_path: Path) -> None:
    lines = [line.partition("#")[0].split() for line in README.read_text().splitlines()]
    first = next(words for words in lines if words[:2] == ["esper", "run"])
    keys = ("run.epochs=1", "policy.deadline_s=60.0", "ray.start_deadline_s=200.0")
    short = [*(word for key in keys for word in ("--set", key)), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "esper", *first[1:], *short],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["task"] == "esper.tasks.stdlib_text:task"
    assert told["steps"] == read_past(tmp_path / told["run_dir"]).entries[-1].body["steps"] > 0
    assert told["test_loss"] < told["start_test_loss"]
