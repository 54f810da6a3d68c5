"""A run goes on with the code that it began with: its task file, the modules beside it, and what they compute."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from torch import Tensor
from torch.nn.functional import cross_entropy

from esper import resume, run
from esper.archive.history import read_past
from esper.archive.run_directory import run_file
from esper.errors import Drained, TaskError
from esper.flow.identifying import same_loss
from esper.ground.machine import cpu_type
from esper.testing import StopAt, telling, tiny_config, tiny_task
from esper.user_code.task_reference import load_task

TASK = """
import beside
from inner import tiny_task


def task():
    import late
    return tiny_task(epochs=1, optimizer=beside.optimizer)
"""
FILES = {
    "mine.py": TASK,
    "beside.py": "import constants\nimport torch\ndef optimizer(ps): return torch.optim.SGD(ps, lr=constants.RATE)\n",
    "constants.py": "RATE = 0.1\n",
    "late.py": "",
    "inner/__init__.py": "from inner.deep import tiny_task\n",
    "inner/deep.py": "from esper.testing import tiny_task\n",
    "data.txt": "not code",
    "unused.py": "",
}
NO_GROWTH = {"growth__enabled": False, "run__round_steps": 8}


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run of a task in several files, stopped at its first fence."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    task, reference = load_task(f"{tmp_path}/mine.py:task")
    place, watch = tmp_path / "run", StopAt(1)
    with pytest.raises(Drained):
        run(task, tiny_config(run__dir=str(place), **NO_GROWTH), reference=reference, drain=watch.drain, progress=watch)
    return place


def test_every_module_of_the_task_is_compared_and_no_other_file(stopped: Path) -> None:
    code = {name for name in FILES if name not in ("data.txt", "unused.py")}
    assert json.loads(run_file(stopped).read_text())["task_files"].keys() == code
    for name in code - {"mine.py"}:
        file = stopped.parent / name
        file.write_text(f"raise ZeroDivisionError\n{FILES[name]}")  # it is not run before it is compared
        with pytest.raises(TaskError, check=telling(name, field="task", value=re.compile("/mine\\.py:task$"))):
            resume(stopped)
        file.write_text(FILES[name])
    (stopped.parent / "late.py").unlink()
    with pytest.raises(TaskError, check=telling("late.py", field="task", value=re.compile("/mine\\.py:task$"))):
        resume(stopped)
    (stopped.parent / "late.py").write_text("")
    for name in ("data.txt", "unused.py"):
        (stopped.parent / name).write_text("raise ZeroDivisionError")
    assert resume(stopped).steps == 32


def twice(output: Tensor, target: Tensor) -> Tensor:
    return 2 * cross_entropy(output, target)


def twice_each(output: Tensor, target: Tensor) -> Tensor:
    return 2 * cross_entropy(output, target, reduction="none")


def test_a_task_that_computes_another_loss_is_refused(tmp_path: Path) -> None:
    place, watch = tmp_path / "run", StopAt(1)
    with pytest.raises(Drained):
        run(tiny_task(epochs=1), tiny_config(run__dir=str(place), **NO_GROWTH), drain=watch.drain, progress=watch)
    with pytest.raises(TaskError, check=telling(field="task", value="given from Python")):
        resume(place, tiny_task(epochs=1, loss=twice, sample_loss=twice_each))
    assert resume(place, tiny_task(epochs=1)).steps == 32


@pytest.mark.parametrize(
    ("device", "cpu", "close"), [("cpu", cpu_type(), False), ("cuda", cpu_type(), True), ("cpu", "an abacus", True)]
)
def test_a_first_loss_is_compared_to_the_bit_only_where_the_bits_are_promised(
    stopped: Path, device: str, cpu: str, close: bool
) -> None:
    began = read_past(stopped).identity
    assert began.first_loss is not None
    on = began.config.model_copy(update={"run": began.config.run.model_copy(update={"device": device})})
    began = began.model_copy(update={"config": on, "cpu": cpu})
    assert same_loss(began.first_loss, began)
    assert same_loss(began.first_loss * (1 + 1e-6), began) is close
    assert not same_loss(began.first_loss * 1.1, began)
