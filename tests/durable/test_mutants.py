"""The protocol with one mistake at a time: a crash shim that lets such a mutant live proves nothing about the rest."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import pytest
from checks import CHECKS, works
from code_under_test import MODULES, REAL, Code, mutated
from mutants import MUTANTS, Mutant
from torture import Torture
from workloads import WORKLOADS, Workload

TABLE = Path(__file__).resolve().parents[2] / "docs" / "durability.md"


def killer(code: Code, modules: Set[str]) -> str:
    """What finds a mistake in `modules` first: the crash shim, by workload, or a check by its name; "" if nothing."""
    *quick, slow = [workload for workload in WORKLOADS if workload.uses & modules]
    for tried in (*quick, *CHECKS, slow):
        try:
            if isinstance(tried, Workload):
                Torture(code, tried, per_point=20, nested_every=20).all()
            else:
                tried(code)
        except Exception:
            return f"crash shim, {tried.name}" if isinstance(tried, Workload) else tried.__name__.replace("_", " ")
    return ""


def test_nothing_is_found_in_the_code_as_it_is() -> None:
    assert killer(REAL, set(MODULES)) == ""


def test_a_mutant_whose_text_is_not_there_is_an_error_and_not_a_survivor() -> None:
    with pytest.raises(ValueError, match="0 times"):
        mutated({"log": [("no such text", "")]})


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_in_the_protocol_is_found(mutant: Mutant) -> None:
    code = mutated({mutant.module: [(mutant.old, mutant.new)]})
    works(code)  # it does well until something goes wrong: else it is no mutant of the protocol
    found = killer(code, {mutant.module})
    assert found or mutant.redundant
    assert not (found and mutant.redundant), f"said to be redundant, killed by {found}"
    assert f"| {mutant.name} | {found or 'redundant: ' + mutant.redundant} |" in TABLE.read_text(encoding="utf-8")


def test_there_are_as_many_mutants_as_are_published() -> None:
    killed = sum(not mutant.redundant for mutant in MUTANTS)
    assert len(MUTANTS) >= 20
    assert f"{killed} of {len(MUTANTS)} mutants killed" in TABLE.read_text(encoding="utf-8")
