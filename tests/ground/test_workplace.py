"""Relative paths start where a command began, wherever the user's code moves the working directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from esper.archive.run_directory import run_file
from esper.cli.main import exit_code
from esper.errors import ConfigError
from esper.ground.workplace import fixed, from_here, shown
from esper.testing import telling

TASK = """
import os
from pathlib import Path
from esper.testing import TinyHost, tiny_task

os.chdir("data")
assert Path("there").exists()

class Moving(TinyHost):
    def forward(self, x):
        os.chdir("/")
        return super().forward(x)

def task(): return tiny_task(model=Moving, epochs=1)
"""


def test_a_task_that_changes_the_working_directory_moves_no_file_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "there").touch()
    (tmp_path / "t.py").write_text(TASK)
    for words in (["run", "t.py:task", "--no-growth", "--run-dir", "here"], ["resume", "here"]):
        monkeypatch.chdir(tmp_path)
        assert exit_code([*words, "--in-process", "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["run_dir"] == "here"
    assert {entry.name for entry in tmp_path.iterdir()} - {"__pycache__"} == {"data", "t.py", "here"}
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["there"]
    assert json.loads(run_file(tmp_path / "here").read_text())["started_in"] == str(tmp_path)


@pytest.mark.parametrize("code", [0, 3])
def test_an_absolute_run_directory_is_told_as_it_was_given(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").write_text("from esper.testing import tiny_task\ndef task(): return tiny_task(epochs=1)")
    passage = 1 if code else 10_000
    (tmp_path / "f.toml").write_text(f'[[faults]]\npoint = "tolaria.round"\nfault = "raise"\npassage = {passage}\n')
    words = ["run", "t.py:task", "--no-growth", "--run-dir", str(tmp_path / "here"), "--faults", "f.toml"]
    assert exit_code([*words, "--in-process", "--json"]) == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run_dir"] == str(tmp_path / "here")


def test_a_place_is_fixed_by_the_outermost_block_and_shown_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with from_here():
        os.chdir("sub")
        with from_here():
            assert fixed(Path("a")) == tmp_path / "a"
        assert shown(tmp_path / "a") == "a"
        assert shown(fixed(tmp_path / "b")) == str(tmp_path / "b")
        assert shown(Path("/elsewhere")) == "/elsewhere"
    assert fixed(Path("a")) == tmp_path / "sub" / "a"
    os.rmdir(tmp_path / "sub")
    with from_here():
        assert fixed(Path("/a")) == Path("/a")
        with pytest.raises(ConfigError, check=telling("No such file", field="working directory")):
            fixed(Path("a"))


@pytest.mark.parametrize(
    "command", ["run t.py:task --in-process", "resume run", "snapshot run", "export run", "prove run"]
)
def test_a_command_in_a_folder_that_was_deleted_is_refused_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    os.chdir("sub")
    os.rmdir(tmp_path / "sub")
    assert exit_code(command.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
