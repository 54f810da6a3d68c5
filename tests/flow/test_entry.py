"""`esper.run` and `esper.resume`: which names there are, what they import, what they refuse, what they give back."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import esper
from esper.errors import ConfigError, TaskError
from esper.ground.tensors import state_digest
from esper.testing import telling, tiny_config, tiny_task
from esper.user_code.plugins import LAUNCHERS, entries


def python(code: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_every_public_name_is_there_and_none_is_a_module() -> None:
    assert sorted(esper.__all__) == sorted(
        [
            "InProcess",
            "Kind",
            "OnRay",
            "Result",
            "RunConfig",
            "SlotSpec",
            "Task",
            "blueprint",
            "fell_back",
            "load",
            "resume",
            "run",
        ]
    )
    for name in esper.__all__:
        assert callable(getattr(esper, name))
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


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"on": "ray"}, r"on = 'ray': give esper\.InProcess\(\) or esper\.OnRay\(\)"),
        ({"on": esper.OnRay}, r"on = .*OnRay.*: give esper\.InProcess"),
        ({"on": esper.OnRay(embedded="local")}, r"embedded = 'local': give an actors\.embedded_ray\.EmbeddedRay"),
        ({"config": {"run.seed": 1}}, r"config = 'dict': give an esper\.RunConfig"),
        ({"task": tiny_task}, r"task = 'function': give an esper\.Task"),
    ],
    ids=["place", "class", "embedded", "config", "task"],
)
def test_an_argument_of_another_type_is_refused_before_anything_is_written(
    arguments: dict[str, Any], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=error):
        esper.run(**{"task": tiny_task(), **arguments})
    assert list(tmp_path.iterdir()) == []


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
