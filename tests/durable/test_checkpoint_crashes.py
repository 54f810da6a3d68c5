"""Every crash of a whole run that the shim can think of: checkpoints, journals, generations, rollback, quarantine.

One level above test_crashes.py: the real modules that keep a run, on a disk with folders. A stand-in takes the place of
the trainer's host; it saves with the real saver.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import run_lives
from crash_tree import HERE, CrashTree, in_memory
from mutants import RUN_MUTANTS, Mutant
from run_checks import RUN_CHECKS
from run_code import REAL, RunCode, mutated
from run_lives import RUN, SCENARIOS, Promises, Scenario, works
from run_torture import RunTally, RunTorture
from torture import the_same_secrets
from workloads import Broken

from esper.errors import EsperError

TABLE = Path(__file__).resolve().parents[2] / "docs" / "durability.md"
LEAST, LEAST_IN_THE_LONG_RUN = 10_000, 500_000
"""Distinct states over all scenarios, each read and loaded once for each promise that it was met under."""


def tortured(per_point: int, nested_every: int, kill_every: int, scenarios: tuple[Scenario, ...] = SCENARIOS) -> int:
    """Returns how many states were met."""
    states = 0
    for scenario in scenarios:
        tally = RunTorture(REAL, scenario, per_point, nested_every, kill_every).all()
        print(f"{scenario.name}: {told(tally)}")
        states += tally.states
    print(f"all: {states} distinct states")
    return states


def told(tally: RunTally) -> str:
    return (
        f"{tally.states} distinct states at {tally.points} points;"
        f" gone on from {tally.gone_on} crashes and {tally.kills} kills"
    )


@pytest.mark.slow
def test_after_any_crash_a_run_goes_on_from_its_last_checkpoint() -> None:
    assert tortured(per_point=12, nested_every=44, kill_every=20) >= LEAST


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_after_hundreds_of_thousands_of_crashes_a_run_goes_on_from_its_last_checkpoint() -> None:
    assert tortured(per_point=120, nested_every=40, kill_every=1) >= LEAST_IN_THE_LONG_RUN


# -- the checks themselves ---------------------------------------------------------------------------------------


def test_a_broken_promise_is_told_with_the_state_that_broke_it() -> None:
    lossy = next(mutant for mutant in RUN_MUTANTS if "dropped before the COMMIT" in mutant.name)
    code = mutated({lossy.module: [(lossy.old, lossy.new)]})
    with pytest.raises(Broken, match="not what was committed: 0 bytes") as broken:
        RunTorture(code, SCENARIOS[0], per_point=0, nested_every=10**9, kill_every=0).all()
    assert SCENARIOS[0].name in broken.value.__notes__[0]


def test_names_in_a_folder_are_lost_with_the_folder_s_own_name() -> None:
    with in_memory():
        HERE.disk = disk = CrashTree()
        RUN.mkdir(exist_ok=True)
        disk.close(disk.open(RUN / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        disk.sync_folder(RUN)
        assert left(disk) == {frozenset(), frozenset({"run/", "run/f"})}
        disk.sync_folder(RUN.parent)
        assert left(disk) == {frozenset({"run/", "run/f"})}


def test_of_a_rename_to_another_folder_each_half_is_durable_by_its_own_folder() -> None:
    with in_memory():
        HERE.disk = disk = CrashTree({"a/": b"", "b/": b"", "a/f": b"x"})
        disk.rename(RUN.parent / "a" / "f", RUN.parent / "b" / "f")
        folders = {"a/", "b/"}
        assert left(disk) == {frozenset({*folders, "a/f"}), frozenset({*folders, "b/f"})}
        disk.sync_folder(RUN.parent / "b")
        assert left(disk) == {frozenset({*folders, "b/f"}), frozenset({*folders, "a/f", "b/f"})}
        disk.sync_folder(RUN.parent / "a")
        assert left(disk) == {frozenset({*folders, "b/f"})}


def left(disk: CrashTree) -> set[frozenset[str]]:
    return {frozenset(state) for state in disk.states(random.Random(0), 0)}


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if not one.planted], ids=lambda scenario: scenario.name)
def test_a_run_in_memory_leaves_what_it_leaves_on_a_real_disk(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with the_same_secrets(), in_memory():
        HERE.disk = disk = CrashTree()
        scenario.run(REAL, Promises())
    monkeypatch.setattr(run_lives, "RUN", tmp_path / "run")
    monkeypatch.setattr(run_lives, "FOLDER", tmp_path / "run" / "checkpoints")
    monkeypatch.setattr(HERE, "disk", SimpleNamespace(damage=lambda name: flip(tmp_path / name)))
    with the_same_secrets():
        scenario.run(REAL, Promises())
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*")}
    real = {
        f"{name}/" if path.is_dir() else name: b"" if path.is_dir() else path.read_bytes()
        for name, path in files.items()
    }
    assert real == disk.contents()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("check", RUN_CHECKS, ids=lambda check: check.__name__)
def test_of_the_code_as_it_is(check: object) -> None:
    check(REAL)


# -- mutants -----------------------------------------------------------------------------------------------------


def killers(nested_every: int) -> dict[str, Callable[[RunCode], object]]:
    """By the names that the table has for them."""

    def torture(scenario: Scenario) -> Callable[[RunCode], object]:
        return lambda code: RunTorture(code, scenario, per_point=0, nested_every=nested_every, kill_every=0).all()

    def killed(code: RunCode) -> object:
        return RunTorture(code, SCENARIOS[0], per_point=0, nested_every=10**9, kill_every=1).all()

    return {
        **{f"crash shim, {scenario.name}": torture(scenario) for scenario in SCENARIOS},
        f"kills, {SCENARIOS[0].name}": killed,
        **{check.__name__.replace("_", " "): check for check in RUN_CHECKS},
    }


def published(mutant: Mutant) -> str:
    """What the table says of it."""
    (line,) = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {mutant.name} |")]
    return line.split("|")[2].strip()


def made(mutant: Mutant) -> RunCode:
    """The code with the mistake, which does well until something goes wrong: else it is no mutant of the protocol."""
    code = mutated({mutant.module: [(mutant.old, mutant.new)]})
    with in_memory():
        HERE.disk = CrashTree()
        works(code)
    return code


@pytest.mark.parametrize("mutant", [one for one in RUN_MUTANTS if not one.redundant], ids=lambda mutant: mutant.name)
def test_a_mistake_in_what_keeps_a_run_is_found_by_what_the_table_says(mutant: Mutant) -> None:
    code = made(mutant)
    with pytest.raises((AssertionError, EsperError)):
        killers(nested_every=10)[published(mutant)](code)


@pytest.mark.torture
@pytest.mark.parametrize("mutant", [one for one in RUN_MUTANTS if one.redundant], ids=lambda mutant: mutant.name)
def test_a_second_safeguard_is_missed_by_nothing(mutant: Mutant) -> None:
    code = made(mutant)
    assert published(mutant) == f"redundant: {mutant.redundant}"
    for kill in killers(nested_every=70).values():
        kill(code)


def test_there_are_as_many_mutants_as_are_published() -> None:
    killed = sum(not mutant.redundant for mutant in RUN_MUTANTS)
    assert f"{killed} of {len(RUN_MUTANTS)} mutants killed" in TABLE.read_text(encoding="utf-8")
