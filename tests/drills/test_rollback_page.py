"""docs/runbooks/rollback.md: its commands work, and its switches and files exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from drills.catalogue import CATALOGUE
from esper.cli.main import app
from esper.config.joined import RunConfig

PAGE = (Path(__file__).parents[2] / "docs/runbooks/rollback.md").read_text()


def ran(line: str) -> None:
    words = line.split()[1:]
    words += ["--in-process"] * (words[0] == "resume")
    assert not typer.main.get_command(app).main(words, standalone_mode=False), line


@pytest.mark.slow
def test_the_commands_of_the_page_on_rollbacks_work(stopped_runs: Callable[..., Path], tmp_path: Path) -> None:
    run, copy = stopped_runs(4), tmp_path / "copy"
    (block,) = re.findall(r"```\n(.+?)```", PAGE, flags=re.DOTALL)
    listed = re.findall(r"`(esper (?!snapshot)[^`]+)`", PAGE)
    drill, *whole = block.splitlines()
    assert drill.removeprefix("esper drill run ") in {one.name for one in CATALOGUE}
    assert {line.split()[1] for line in (*whole, *listed)} == {"checkpoint", "snapshot", "resume", "trace", "queue"}
    for line in (*whole, *listed):
        ran(line.replace("COPY", str(copy)).replace("RUN", str(run)))


def test_each_switch_of_the_page_on_rollbacks_is_a_key_of_the_config() -> None:
    keys = set(re.findall(r"`((?:checkpoint|supervision|policy)\.\w+)`", PAGE))
    assert len(keys) >= 6
    config = RunConfig()
    tables = {"checkpoint": config.checkpoint, "supervision": config.supervision, "policy": config.policy}
    known = {f"{name}.{key}" for name, table in tables.items() for key in type(table).model_fields}
    assert keys <= known
