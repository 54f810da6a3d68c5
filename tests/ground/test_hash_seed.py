"""Sets of texts have the same order in every process of a run; where they have not, a resume notices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.actor_process import actor_environment
from esper import resume, run
from esper.archive import identity, resuming
from esper.archive.history import read_past
from esper.archive.run_directory import telemetry_folder
from esper.errors import ConfigError, Drained, TaskError
from esper.flow.result import Result
from esper.ground import hash_seed
from esper.task import Task
from esper.telemetry.events import LOG
from esper.testing import StopAt, TinyHost, telling, tiny_config, tiny_task

PROGRAM = (
    "import sys; from esper.ground.hash_seed import fix_hash_seed, hash_seed, text_hash; fix_hash_seed();"
    "print(text_hash(), hash_seed(), sys.argv[1:], sys.stdin.read(), 'torch' in sys.modules); sys.exit(7)"
)


def started(*options: str, **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != hash_seed.VARIABLE}
    command = [sys.executable, *options, "-c", PROGRAM, "a b", "--c"]
    found = subprocess.run(command, env=clean | variables, input="in", capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (7, "")
    return found.stdout


def test_a_program_that_is_started_again_has_a_fixed_order_and_all_that_it_was_given_and_has_imported_nothing() -> None:
    first, second = started(), started(PYTHONHASHSEED="random")
    assert first == second
    assert first.endswith(" 0 ['a b', '--c'] in False\n")


def test_a_seed_of_the_users_own_is_kept_and_a_python_that_does_not_obey_the_variable_goes_on() -> None:
    for seed in ("0", "7", "4294967295"):
        assert f" {seed} ['a b'" in started(PYTHONHASHSEED=seed)
        assert " None ['a b'" in started("-R", PYTHONHASHSEED=seed)
    assert " None ['a b'" in started("-R")
    assert " None ['a b'" in started("-E", PYTHONHASHSEED="7")


def test_actors_have_the_order_of_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    for own, theirs in ((None, "0"), (7, "7")):
        monkeypatch.setattr(hash_seed, "hash_seed", lambda own=own: own)
        assert actor_environment(2) == {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": theirs}


def test_a_fixed_seed_that_differs_from_the_runs_is_refused_with_the_one_to_set(
    undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = read_past(Path(undisturbed.run_dir)).identity.model_copy(update={"hash_seed": 3})
    for same in (None, 3):
        monkeypatch.setattr(resuming, "hash_seed", lambda same=same: same)
        resuming.check_versions(Path(), began)
    monkeypatch.setattr(resuming, "hash_seed", lambda: 0)
    with pytest.raises(ConfigError, check=telling("3", field="PYTHONHASHSEED", value=0)):
        resuming.check_versions(Path(), began)


class Summing(TinyHost):
    """Adds up in an order that a test can turn round, as another secret does with a set."""

    order = tuple(0.37 * place + 0.011 for place in range(40))

    def forward(self, x_BC: Tensor) -> Tensor:
        total = torch.zeros_like(x_BC)
        for weight in Summing.order:
            total = total + x_BC * weight
        return super().forward(x_BC + 1e-3 * total)


def short(model: type) -> Task:
    return tiny_task(model=model, epochs=1)


@pytest.mark.parametrize("model", [Summing, TinyHost])
def test_a_random_order_that_matters_is_refused_and_one_that_does_not_is_said(
    model: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    config = tiny_config(run__dir=str(path), growth__enabled=False)
    with pytest.raises(Drained):
        run(short(model), config, drain=(watch := StopAt(1)).drain, progress=watch)
    monkeypatch.setattr(Summing, "order", Summing.order[::-1])
    monkeypatch.setattr(identity, "text_hash", lambda: 5)
    if model is Summing:
        with pytest.raises(TaskError, check=telling(field="task", value="given from Python")):
            resume(path, short(model))
    else:
        resume(path, short(model))
        assert '"other_hash_seed"' in (telemetry_folder(path) / LOG).read_text()
