"""With `--json` every command prints an object for a refusal, too."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from esper.cli.command_table import COMMANDS
from esper.cli.lazy_group import Unloaded
from esper.cli.main import exit_code

NEEDS: defaultdict[str, list[str]] = defaultdict(
    list,
    {
        "signal": ["--level", "HALT", "--reason", "r"],
        "queue retry": ["some-id"],
        "queue drop": ["some-id", "--reason", "r", "--yes"],
        "trace show": ["0" * 32],
        "trace grep": ["word"],
        "trace export": ["--to", "there.json"],
        "trace assert": ["a"],
    },
)
"""Further words that a command needs, so that it is refused for its run and not for its words."""


def commands() -> Iterator[str]:
    """Every command that has `--json` and takes an argument."""
    for name, spec in COMMANDS.items():
        command: Any = Unloaded(name, spec).load()
        inner = command.commands if isinstance(command, TyperGroup) else {"": command}
        for second, one in inner.items():
            takes = [option.name for option in one.params]
            if "as_json" in takes and len(takes) > 1:
                yield f"{name} {second}".strip()


@pytest.mark.parametrize("words", list(commands()))
def test_a_refusal_is_an_object_and_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = ["--in-process"] if words in ("run", "resume") else []
    for extra, known in (([*NEEDS[words]], True), (["--nothing"], False)):
        code = exit_code([*words.split(), "absent.py:run", *here, *extra, "--json"])
        out, err = capsys.readouterr()
        told = json.loads(out.splitlines()[-1])
        assert code == 2, err
        assert err == f"esper: {' '.join(told['message'].split())}\n"
        assert told["error"]
        if known:
            assert told["field"]
            assert told["mend"]
