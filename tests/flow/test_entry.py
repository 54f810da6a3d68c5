"""`esper.run` and `esper.resume`: which names there are, what they import, what they refuse, what they give back."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from stopping import stop

import esper
from esper.cli.main import exit_code
from esper.errors import ConfigError, TaskError
from esper.flow.progress import Quiet
from esper.ground.tensors import state_digest
from esper.testing import telling, tiny_config, tiny_task
from esper.user_code.plugins import LAUNCHERS, entries


def python(code: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_every_public_name_is_there_and_none_is_a_module() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name in esper.__all__:
        assert callable(getattr(esper, name))
        assert inspect.getdoc(getattr(esper, name))
        assert f"`{name}`" in readme or f"`esper.{name}" in readme, name
        assert find_spec(f"esper.{name}") is None  # the import of such a module would replace the name


def test_import_esper_loads_no_library_and_no_run_in_one_process_loads_ray(tmp_path: Path) -> None:
    big = "print(sorted({'actors', 'pydantic', 'ray', 'rich', 'torch', 'typer'} & sys.modules.keys()))"
    run = (
        "from esper.testing import tiny_config, tiny_task\n"
        "config = tiny_config(run__dir='run', growth__enabled=False)\n"
        "print(esper.run(tiny_task(epochs=1), config, on=esper.InProcess()).steps)\n"
        "print(sorted({'actors', 'ray', 'rich', 'typer'} & sys.modules.keys()))"
    )
    assert python(f"import esper, sys\n{big}\n{run}", tmp_path).splitlines() == ["[]", "32", "[]"]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("run", {"on": "ray"}, "on"),
    ("run", {"on": esper.OnRay}, "on"),
    ("run", {"on": esper.OnRay(embedded="local")}, "embedded"),
    ("run", {"on": esper.InProcess(policy="best")}, "policy"),
    ("run", {"on": esper.InProcess(clock=time)}, "clock"),
    ("run", {"config": {"run.seed": 1}}, "config"),
    ("run", {"task": tiny_task}, "task"),
    ("run", {"reference": 5}, "reference"),
    ("run", {"reference": "nowhere.py:task"}, "TASK"),
    ("run", {"reference": "esper.tasks.digits:task"}, "reference"),
    ("run", {"progress": Quiet}, "progress"),
    ("run", {"progress": print}, "progress"),
    ("run", {"drain": True}, "drain"),
    ("resume", {"run_dir": 5}, "run_dir"),
    ("resume", {"run_dir": b"run"}, "run_dir"),
    ("resume", {"run_dir": ""}, "run_dir"),
    ("resume", {"task": 5}, "task"),
    ("resume", {"settings": ["run.epochs=3"]}, "settings"),
    ("resume", {"settings": {1: 3}}, "settings"),
    ("resume", {"broken": 5}, "broken"),
    ("resume", {"progress": object()}, "progress"),
    ("resume", {"on": None}, "on"),
    ("load", {"run_dir": None}, "run_dir"),
    ("load", {"task": dict}, "task"),
    ("prove", {"run_dir": 5}, "run_dir"),
    ("prove", {"task": dict}, "task"),
    ("prove", {"policy": object()}, "policy"),
    ("prove", {"progress": object()}, "progress"),
    ("export_network", {"run_dir": 5}, "run_dir"),
    ("export_network", {"format": "tflite"}, "format"),
    ("export_network", {"format": None}, "format"),
    ("export_network", {"to": 5}, "to"),
    ("export_network", {"task": dict}, "task"),
]


def test_a_wrong_argument_is_refused_by_its_name_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, arguments, field in WRONG:
        own = {"task": tiny_task()} if name == "run" else {"run_dir": "run"}
        try:
            with pytest.raises(ConfigError, check=telling(field=field)):
                getattr(esper, name)(**{**own, **arguments})
        except Exception as error:
            error.add_note(f"{name}({arguments})")
            raise
        assert list(tmp_path.iterdir()) == []


MINE = """
from esper.testing import tiny_task

def task():
    return tiny_task(epochs=1)
"""


def test_a_run_from_python_with_a_text_as_its_reference_needs_no_task_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    config = tiny_config(run__dir="run", growth__enabled=False)
    for task, reference in ((tiny_task(epochs=2), "mine.py:task"), (tiny_task(epochs=1, slots=["*"]), "mine.py:task")):
        with pytest.raises(ConfigError, check=telling(field="reference", value=reference)):
            esper.run(task, config, reference=reference)
    (tmp_path / "script.py").write_text(MINE + "import esper\nesper.run(task(), reference='script.py:task')\n")
    with pytest.raises(ConfigError, check=telling("__main__", field="reference", value="script.py:task")):
        esper.run(tiny_task(epochs=1), config, reference="script.py:task")
    assert not (tmp_path / "run").exists()
    ended = esper.run(tiny_task(epochs=1), config, reference="mine.py:task")
    assert state_digest(esper.load("run").state_dict()) == ended.weights_sha256
    monkeypatch.chdir("/")
    assert exit_code(["export", str(tmp_path / "run")]) == 0
    (tmp_path / "mine.py").write_text(MINE + "# changed\n")
    with pytest.raises(TaskError, check=telling(field="task")):
        esper.load(tmp_path / "run")


@pytest.mark.slow
def test_commands_take_the_task_of_a_run_that_has_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    stop(1, tiny_task(epochs=1), tiny_config(run__dir="run"))
    commands = (["export", "run"], ["resume", "run", "--in-process"], ["prove", "run"])
    for command in commands:
        assert exit_code(command) == 2
        assert "--task file.py:name" in capsys.readouterr().err
    for command in commands:
        assert exit_code([*command, "--task", "mine.py:task"]) == 0
    assert "weights at 3 fences" in capsys.readouterr().out
    assert esper.export_network("run", to="again", task="mine.py:task").fence == 2


def test_where_actors_is_not_installed_only_the_place_on_ray_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entries(LAUNCHERS) != []
    monkeypatch.setattr("esper.user_code.plugins.entries", lambda _: [])
    for start in (lambda: esper.run(tiny_task(), on=esper.OnRay()), lambda: esper.resume(tmp_path, on=esper.OnRay())):
        with pytest.raises(ConfigError, check=telling(field="actors", value="")):
            start()


def test_a_run_that_has_ended_gives_its_network_to_whoever_has_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = esper.run(tiny_task(epochs=1), tiny_config(run__dir="run", growth__enabled=False))
    given, missing = esper.resume("run", tiny_task(epochs=1)), esper.resume("run")
    assert given.as_json() == missing.as_json() == ended.as_json()
    monkeypatch.chdir(tmp_path.parent)  # the network is that of the run, wherever the program is by now
    assert state_digest(given.network.state_dict()) == ended.weights_sha256
    assert given.network is given.network
    with pytest.raises(TaskError, check=telling("run.json", field="task", value="")):
        _ = missing.network


def test_the_names_that_python_lists_are_the_public_ones() -> None:
    assert {name for name in dir(esper) if not name.startswith("_")} == set(esper.__all__)
