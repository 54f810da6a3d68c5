"""The whole runtime is killed anywhere, any number of times, and the run ends with the bits of one that was not.

Real processes and SIGKILL. Where it strikes is a fault point and a passage, drawn from a fixed seed for the long runs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from esper.config import as_toml
from esper.history import read_past
from esper.journal import Kind
from esper.summary import Result
from esper.testing import tiny_config

TASK = "from esper.testing import tiny_task\n\ntask = tiny_task()\n"

MOMENTS: dict[str, tuple[str, int]] = {  # name: point, how often a run passes it at least
    "in a step": ("tolaria.step", 320),
    "at a fence": ("conductor.fence", 17),
    "in a save": ("tolaria.save", 17),
    "between rename and COMMIT": ("conductor.commit", 17),
    "in a graft": ("tolaria.apply", 2),
    "in an incubation": ("kasmina.step", 600),
    "in a decision": ("tamiyo.decide", 10),
    "before its first record": ("conductor.open", 1),
}
RESUMING: dict[str, tuple[str, int]] = {
    "before it takes over": ("conductor.open", 1),
    "when it has taken over": ("conductor.supersede", 1),
    "when run.json says so": ("conductor.resume", 1),
    "when one room is restored": ("conductor.restore", 1),
}
"""Moments of a run that is gone on with."""


class Killed:
    """A run of the tiny task by the command line, in one process, that is killed again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        (folder / "task.py").write_text(TASK)
        (folder / "tiny.toml").write_text(as_toml(tiny_config()))

    def strike(self, point: str, passage: int) -> bool:
        """Begin it or go on with it until it is killed at a passage of a point. False: it came to its end before."""
        (self.folder / "faults.toml").write_text(
            f'[[faults]]\npoint = "{point}"\nfault = "kill"\npassage = {passage}\n'
        )
        code, err = self._esper("--faults", f"{self.folder}/faults.toml")
        assert code in (-signal.SIGKILL, 0), err
        return code == -signal.SIGKILL

    def finish(self) -> dict[str, Any]:
        """Go on with it to its end; what `--json` prints."""
        code, err = self._esper()
        assert code == 0, err
        told: dict[str, Any] = json.loads((self.folder / "out").read_text().splitlines()[-1])
        return told

    def _esper(self, *words: str) -> tuple[int, str]:
        where = ["--config", f"{self.folder}/tiny.toml", "--run-dir", str(self.run_dir)]
        begin = ["run", f"{self.folder}/task.py:task", *where]
        go_on = ["resume", str(self.run_dir)]
        command = [*(go_on if (self.run_dir / "run.json").exists() else begin), "--in-process", "--json", *words]
        with (self.folder / "out").open("w") as out:
            done = subprocess.run(
                [sys.executable, "-m", "esper.cli", *command],
                env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        return done.returncode, done.stderr


def end_the_same(folder: Path, undisturbed: Result, strikes: Sequence[tuple[str, int]]) -> int:
    """Kill a run at each of the moments in turn, then let it end. Returns how many of them struck."""
    killed = Killed(folder)
    struck = 0
    for point, passage in strikes:
        if not killed.strike(point, passage):
            break
        struck += 1
    told = killed.finish()
    for name in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps", "trainer_gflops", "incubator_gflops"):
        assert told[name] == getattr(undisturbed, name), name
    assert [path for path in killed.run_dir.rglob("*") if path.name.endswith(".tmp")] == []
    assert read_past(killed.run_dir).entries[-1].kind is Kind.RUN_ENDED
    return struck


QUICK = "between rename and COMMIT"
"""The one that `make test` makes."""
EACH = {"in a step": 77, "at a fence": 9, "in a save": 6, "between rename and COMMIT": 1, "in a graft": 1}
EACH |= {"in an incubation": 300, "in a decision": 3, "before its first record": 1}


@pytest.mark.parametrize("moment", [QUICK, *(pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS if m != QUICK)])
def test_a_run_that_was_killed_at_each_kind_of_moment_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Result, moment: str
) -> None:
    assert end_the_same(tmp_path, undisturbed, [(MOMENTS[moment][0], EACH[moment])]) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_was_killed_at_every_moment_of_its_resumes_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Result
) -> None:
    strikes = [("tolaria.step", 150), *RESUMING.values(), ("tolaria.step", 40), *RESUMING.values(), *RESUMING.values()]
    assert end_the_same(tmp_path, undisturbed, strikes) == len(strikes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.torture) for n in (1, 2))])
def test_a_run_that_was_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Result, number: int
) -> None:
    assert end_the_same(tmp_path, undisturbed, drawn(number, 4)) >= 2


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_fifty_runs_that_were_killed_end_with_the_same_bits(tmp_path: Path, undisturbed: Result) -> None:
    struck = 0
    for number in range(50):
        (place := tmp_path / str(number)).mkdir()
        struck += end_the_same(place, undisturbed, drawn(1000 + number, 1 + number % 4))
    assert struck >= 50


def drawn(seed: int, count: int) -> list[tuple[str, int]]:
    """Moments from a fixed seed, the later ones early in what is left of the run."""
    draw = random.Random(seed)
    chosen = [draw.choice([*MOMENTS.values(), *(RESUMING.values() if number else ())]) for number in range(count)]
    return [(point, draw.randint(1, max(1, often // (2 * count)))) for point, often in chosen]
