"""The drills find what is wrong: with each sabotage of esper's source, the drill that is named fails and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sabotages import IN_PROCESS, SABOTAGES, Change, Sabotage, drilled, sabotaged

IN_CHECK = {"a Hold made in an except", "an unverified checkpoint is loaded", "a cleared queue"}
"""The sabotages of `make check`. `make torture` tries all."""


def why_failed(sabotage: Sabotage, tmp_path: Path) -> str:
    """Return what the drill says that it missed. "": it passed."""
    ended = drilled(sabotaged(sabotage, tmp_path / "tree"), sabotage.drill)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    (told,) = json.loads(ended.stdout.splitlines()[-1])["drills"]
    assert told["passed"] is (ended.returncode == 0)
    return str(told["why"])


@pytest.mark.torture
@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda one: one.name)
def test_each_sabotage_makes_its_drill_fail(sabotage: Sabotage, tmp_path: Path) -> None:
    assert sabotage.missed in why_failed(sabotage, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [one for one in IN_PROCESS if one.name in IN_CHECK], ids=lambda one: one.name)
def test_some_sabotages_make_their_drill_fail(sabotage: Sabotage, tmp_path: Path) -> None:
    assert sabotage.missed in why_failed(sabotage, tmp_path)


@pytest.mark.slow
def test_the_text_of_each_sabotage_is_in_the_source_once(tmp_path: Path) -> None:
    for number, sabotage in enumerate(SABOTAGES):
        sabotaged(sabotage, tmp_path / str(number))
    assert len({one.name for one in SABOTAGES}) == len(SABOTAGES) >= 20
    assert {one.name for one in IN_PROCESS} >= IN_CHECK
    with pytest.raises(ValueError, match="0 times"):
        sabotaged(Sabotage("none", "", "", (Change("esper/task.py", "no such text", ""),)), tmp_path / "none")
