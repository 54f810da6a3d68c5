"""The protocol and the emergency queue with one mistake at a time.

A crash shim that lets such a mutant live proves nothing about the rest.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import pytest
from checks import CHECKS, works
from code_under_test import DURABLE, REAL, Code, mutated
from mutants import MUTANTS, Mutant
from queue_checks import QUEUE_CHECKS, queue_works
from queue_mutants import QUEUE_MUTANTS
from queue_workload import ALL_WORKLOADS
from torture import Torture

TABLE = Path(__file__).resolve().parents[2] / "docs" / "durability.md"


CRASHES = {f"crash shim, {workload.name}": workload for workload in ALL_WORKLOADS}
SLOW = {"crash shim, segments", "crash shim, queue"}
NAMED = {check.__name__.replace("_", " "): check for check in (*CHECKS, *QUEUE_CHECKS)}
ALL_MUTANTS = (*MUTANTS, *QUEUE_MUTANTS)


def finds(code: Code, name: str) -> bool:
    """The crash shim with a workload, or a check, finds a mistake in the code."""
    try:
        if name in CRASHES:
            Torture(code, CRASHES[name], per_point=2 if "queue" in name else 20, nested_every=20).all()
        else:
            NAMED[name](code)
    except Exception:
        return True
    return False


def killer(code: Code, modules: Set[str]) -> str:
    """What finds a mistake in `modules` first; "" if nothing."""
    crashes = [name for name, workload in CRASHES.items() if workload.uses & modules]
    in_order = sorted([*crashes, *NAMED], key=lambda name: (name in SLOW, name in NAMED))
    return next((name for name in in_order if finds(code, name)), "")


def published(mutant: Mutant) -> str:
    """What the table says of it."""
    (line,) = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {mutant.name} |")]
    return line.split("|")[2].strip()


def test_nothing_is_found_in_the_code_as_it_is() -> None:
    assert killer(REAL, set(DURABLE)) == ""  # test_crashes.py does the same with the queue


def test_a_mutant_whose_text_is_not_there_is_an_error_and_not_a_survivor() -> None:
    with pytest.raises(ValueError, match="0 times"):
        mutated({"log": [("no such text", "")]})


@pytest.mark.parametrize("mutant", [one for one in ALL_MUTANTS if not one.redundant], ids=lambda mutant: mutant.name)
def test_a_mistake_in_the_protocol_is_found_by_what_the_table_says(mutant: Mutant) -> None:
    code = mutated({mutant.module: [(mutant.old, mutant.new)]})
    works(code)  # it does well until something goes wrong: else it is no mutant of the protocol
    queue_works(code)
    assert finds(code, published(mutant))


@pytest.mark.torture
@pytest.mark.parametrize("mutant", ALL_MUTANTS, ids=lambda mutant: mutant.name)
def test_the_table_says_what_finds_a_mistake_first(mutant: Mutant) -> None:
    code = mutated({mutant.module: [(mutant.old, mutant.new)]})
    works(code)
    queue_works(code)
    found = killer(code, {mutant.module})
    assert bool(found) is not bool(mutant.redundant)
    assert published(mutant) == (found or f"redundant: {mutant.redundant}")


def test_there_are_as_many_mutants_as_are_published() -> None:
    for mutants in (MUTANTS, QUEUE_MUTANTS):
        killed = sum(not mutant.redundant for mutant in mutants)
        assert len(mutants) >= 20
        assert f"{killed} of {len(mutants)} mutants killed" in TABLE.read_text(encoding="utf-8")
