"""The table of commands, and the commands that installed packages add to it."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest
import typer

from esper.cli.command_table import COMMANDS, may_load_task
from esper.cli.main import app, main
from esper.user_code import plugins


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["inspect", "run"], ["log", "dump", "run"]])
def test_a_command_that_runs_no_code_of_a_user_is_not_started_again_for_its_hash_seed(words: list[str]) -> None:
    assert not may_load_task(words)


def test_every_command_that_runs_code_of_a_user_or_may_do_so_has_a_fixed_hash_seed() -> None:
    loading = {name for name in COMMANDS if may_load_task([name])}
    assert loading == {"run", "resume", "plan", "prove", "export"}
    assert may_load_task(["command-of-a-package"])
    assert may_load_task(["--", "run"])


def add_two(to: typer.Typer) -> None:
    to.command("theirs")(lambda: print("theirs ran"))
    to.command("config")(lambda: print("theirs ran in the place of ours"))


def add_none(to: typer.Typer) -> None:
    del to
    raise ZeroDivisionError("no commands today")


def ended(words: list[str], package: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Exit code of a command line, where one package is installed that adds commands by a function of this file."""
    entry = EntryPoint("theirs", f"{__name__}:{package}", "esper.commands")
    monkeypatch.setattr(plugins, "entries", lambda _group: [entry])
    monkeypatch.setattr(app, "registered_commands", [])
    monkeypatch.setattr(sys, "argv", ["esper", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_a_command_of_a_package_is_listed_and_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["--help"], "add_two", monkeypatch) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == [*COMMANDS, "theirs"]
    assert ended(["theirs"], "add_two", monkeypatch) == 0
    assert capsys.readouterr().out == "theirs ran\n"


@pytest.mark.parametrize("package", ["add_two", "add_none"])
def test_no_package_replaces_or_disturbs_a_command_of_esper(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["config"], package, monkeypatch) == 0
    told = capsys.readouterr()
    assert (told.out[:5], told.err) == ("[run]", "")


def test_a_package_that_adds_no_command_is_named_where_its_command_may_be_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(["theirs"], "add_none", monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "entry point theirs of esper.commands" in line
    assert "no commands today" in line
