"""README's figures are those of the newest dated file of their script; its example runs as it stands there."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from esper.cli.main import exit_code
from esper.config.joined import RunConfig, load_config
from esper.leyline.base import Settings
from esper.leyline.commands import BlendMode
from esper.setup.fences import fences
from esper.setup.survey import survey_of
from esper.setup.wording import percent
from esper.testing import tiny_task

ROOT = Path(__file__).resolve().parents[1]


def test_what_readme_says_of_growing_is_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    newest = sorted((ROOT / "benchmarks" / "results").glob("growth_text-*.json"))[-1]
    pairs = json.loads(newest.read_text(encoding="utf-8"))["pairs"]["text"]
    below = {
        arm: [1 - pair["grown"]["test"] / pair[arm]["test"] for pair in pairs] for arm in ("twin", "static", "plain")
    }
    ends = {arm: (percent(min(of)), percent(max(of))) for arm, of in below.items()}

    assert min(gain for of in below.values() for gain in of) > 0  # else "below" is another word
    assert [pair["seed"] for pair in pairs] == list(range(200, 205))
    said = (
        "With the run seeds 200 to 204 the grown network's test loss is {} to {} below its twin's. It is {} to {} below"
        " that of a network of the same final shape, and {} to {} below that of a wider or deeper plain transformer of"
        " at least as many parameters; both are trained from the first step at their best rates"
    ).format(*ends["twin"], *ends["static"], *ends["plain"])
    assert said in " ".join(readme.split())
    assert f"(benchmarks/results/{newest.name})" in readme
    for figure in (one for pair in ends.values() for one in pair):
        readme = readme.replace(figure, "")
    assert "%" not in readme  # there is no other such figure


def test_what_readme_says_of_hosts_that_nobody_tuned_is_what_was_measured() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    files = (ROOT / "benchmarks" / "results").glob("growth_held_out_default*.json")
    hosts = [json.loads(path.read_text(encoding="utf-8"))["pairs"] for path in files]
    pairs = [pair for of_file in hosts for of_host in of_file.values() for pair in of_host]
    over = sorted(pair["grown"]["test"] / pair["twin"]["test"] for pair in pairs)

    assert (len(over), sum(map(len, hosts))) == (8, 4)
    assert over[6] < 0.995
    assert over[7] == 1.0
    assert "On four hosts that nobody tuned, seven of eight runs ended below their twin, and one equal to it" in readme


def test_the_steps_from_which_a_run_can_grow_are_those_of_the_defaults() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = re.search(r"a run can grow from (\d+) optimizer steps on", readme)
    assert said is not None
    survey = survey_of(tiny_task(), load_config(None, {}))

    def can_grow(steps: int) -> bool:
        data = cast("Any", SimpleNamespace(steps_per_epoch=steps))
        config = load_config(None, {"run.epochs": 1})
        task = replace(survey.task, round_steps=None)
        return replace(survey, fence_steps=fences(task, config, data)).can_grow

    too_short = [steps for steps in range(1, 2000) if not can_grow(steps)]
    assert too_short[-1] + 1 == int(said[1])  # some shorter runs can grow, too: fences decide
    assert too_short[:98] == list(range(1, 99))


def settings_in(text: str) -> set[str]:
    """Return the config keys of six letters or more, and the blend modes, that a text has; the last letter is free."""
    tables = [field.annotation for field in RunConfig.model_fields.values()]
    keys = {
        key for table in tables if isinstance(table, type) and issubclass(table, Settings) for key in table.model_fields
    }
    names = {key.replace("_", " ") for key in keys if len(key) >= 6} | {mode.lower() for mode in BlendMode} | {"blends"}
    assert {"compile", "residual"} <= names
    return {name for name in names if re.search(rf"\b{name[:-1]}", " ".join(text.lower().split()))}


def test_no_setting_is_in_the_list_of_what_is_missing() -> None:
    missing = (ROOT / "README.md").read_text("utf-8").partition("The following is not there yet")[2]
    assert settings_in("Compilation by config, blending modes other than residual") == {"compile", "blends", "residual"}
    assert settings_in(missing) == set()


@pytest.mark.slow
def test_the_network_of_readme_is_trained_loaded_and_exported_as_it_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, load, build, whole = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_task.py").write_text(task, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    short = ["--in-process", "--set", "run.epochs=1"]
    assert exit_code(["run", "my_task.py:task", "--run-dir", "runs/my-run", *short]) == 0
    assert exit_code(["export", "runs/my-run", "--to", "my-network"]) == 0
    for name in ("my_task", "network"):  # another test has a `network`, too
        monkeypatch.delitem(sys.modules, name, raising=False)
    scope: dict[str, Any] = {}
    exec(load, scope)
    exec(build, scope)
    begun: dict[str, Any] = {"__name__": "__main__"}
    exec(whole.replace('"epochs": 3', '"epochs": 1'), begun)
    assert (begun["result"].run_dir, begun["config"].run.epochs) == ("runs/from-python", 1)
    for name in ("my_task", "network"):
        del sys.modules[name]
    points = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scope["model"](points), scope["network"](points))
