"""The protocol with one mistake at a time: a crash shim that lets such a mutant live proves nothing about the rest."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import pytest
from checks import CHECKS, works
from code_under_test import MODULES, REAL, Code, mutated
from mutants import MUTANTS, Mutant
from torture import Torture
from workloads import WORKLOADS

TABLE = Path(__file__).resolve().parents[2] / "docs" / "durability.md"


CRASHES = {f"crash shim, {workload.name}": workload for workload in WORKLOADS}
NAMED = {check.__name__.replace("_", " "): check for check in CHECKS}


def finds(code: Code, name: str) -> bool:
    """The crash shim with a workload, or a check, finds a mistake in the code."""
    try:
        if name in CRASHES:
            Torture(code, CRASHES[name], per_point=20, nested_every=20).all()
        else:
            NAMED[name](code)
    except Exception:
        return True
    return False


def killer(code: Code, modules: Set[str]) -> str:
    """What finds a mistake in `modules` first; "" if nothing."""
    *quick, slow = [name for name, workload in CRASHES.items() if workload.uses & modules]
    return next((name for name in (*quick, *NAMED, slow) if finds(code, name)), "")


def published(mutant: Mutant) -> str:
    """What the table says of it."""
    (line,) = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {mutant.name} |")]
    return line.split("|")[2].strip()


def test_nothing_is_found_in_the_code_as_it_is() -> None:
    assert killer(REAL, set(MODULES)) == ""


def test_a_mutant_whose_text_is_not_there_is_an_error_and_not_a_survivor() -> None:
    with pytest.raises(ValueError, match="0 times"):
        mutated({"log": [("no such text", "")]})


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if not one.redundant], ids=lambda mutant: mutant.name)
def test_a_mistake_in_the_protocol_is_found_by_what_the_table_says(mutant: Mutant) -> None:
    code = mutated({mutant.module: [(mutant.old, mutant.new)]})
    works(code)  # it does well until something goes wrong: else it is no mutant of the protocol
    assert finds(code, published(mutant))


@pytest.mark.torture
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_table_says_what_finds_a_mistake_first(mutant: Mutant) -> None:
    code = mutated({mutant.module: [(mutant.old, mutant.new)]})
    works(code)
    found = killer(code, {mutant.module})
    assert bool(found) is not bool(mutant.redundant)
    assert published(mutant) == (found or f"redundant: {mutant.redundant}")


def test_there_are_as_many_mutants_as_are_published() -> None:
    killed = sum(not mutant.redundant for mutant in MUTANTS)
    assert len(MUTANTS) >= 20
    assert f"{killed} of {len(MUTANTS)} mutants killed" in TABLE.read_text(encoding="utf-8")
