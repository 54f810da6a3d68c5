"""The whole runtime is killed anywhere, any number of times, and the run ends with the bits of one that was not.

Real processes and SIGKILL. Where it strikes is a fault point and a passage, drawn from a fixed seed for the long runs.
A process is a fork of one that has imported esper, as the imports take longer than most of these runs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from adopting import SHORT, WHOLE

from esper.archive.history import read_past
from esper.archive.journal import RecordKind
from esper.config.joined import as_toml
from esper.flow.entry import run
from esper.flow.proof import prove
from esper.flow.result import Result
from esper.testing import tiny_config, tiny_task

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


Esper = Callable[[Sequence[str], Path], int]
"""Runs a command line in a process of its own, with `out` and `err` in a folder. Returns its exit code."""


@pytest.fixture(scope="module")
def esper() -> Iterator[Esper]:
    script = Path(__file__).parent / "data" / "forking.py"
    server = subprocess.Popen(
        [sys.executable, str(script)],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        requests, answers = server.stdin, server.stdout

        def call(words: Sequence[str], folder: Path) -> int:
            print(json.dumps([words, f"{folder}/out", f"{folder}/err"]), file=requests, flush=True)
            return int(answers.readline())

        yield call


class Killed:
    """A run of the tiny task by the command line, in one process, that is killed again and again."""

    def __init__(self, folder: Path, esper: Esper, **config: Any) -> None:
        self.folder, self.run_dir, self._call = folder, folder / "run", esper
        (folder / "task.py").write_text(TASK)
        (folder / "tiny.toml").write_text(as_toml(tiny_config(**config)))

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
        code = self._call(command, self.folder)
        return code, (self.folder / "err").read_text()


def end_the_same(
    folder: Path, esper: Esper, undisturbed: Result, strikes: Sequence[tuple[str, int]], **config: Any
) -> int:
    """Kill a run at each of the moments in turn, then let it end. Returns how many of them struck."""
    killed = Killed(folder, esper, **config)
    struck = 0
    for point, passage in strikes:
        if not killed.strike(point, passage):
            break
        struck += 1
    told = killed.finish()
    for name in ("weights_sha256", "twin_weights_sha256", "test_loss", "steps", "trainer_gflops", "incubator_gflops"):
        assert told[name] == getattr(undisturbed, name), name
    assert [path for path in killed.run_dir.rglob("*") if path.name.endswith(".tmp")] == []
    assert read_past(killed.run_dir).entries[-1].kind is RecordKind.RUN_ENDED
    return struck


EACH = {"in a step": 77, "at a fence": 9, "in a save": 6, "between rename and COMMIT": 1, "in a graft": 1}
EACH |= {"in an incubation": 300, "in a decision": 3, "before its first record": 1}


@pytest.mark.torture
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_was_killed_once_ends_with_the_same_bits(
    tmp_path: Path, esper: Esper, undisturbed: Result, moment: str
) -> None:
    assert end_the_same(tmp_path, esper, undisturbed, [(MOMENTS[moment][0], EACH[moment])]) == 1


AT_EACH = {"before its first record": 1, "in a step": 50, "in an incubation": 30, "in a graft": 1, "in a save": 2}
AT_EACH |= {"between rename and COMMIT": 2, "in a decision": 1, "at a fence": 2}
"""Which passage in the process that is to be killed, in this order."""


@pytest.mark.slow
def test_a_run_that_was_killed_at_each_kind_of_moment_ends_with_the_same_bits(
    tmp_path: Path, esper: Esper, undisturbed: Result
) -> None:
    assert AT_EACH.keys() == MOMENTS.keys()
    strikes = [(MOMENTS[moment][0], passage) for moment, passage in AT_EACH.items()]
    assert end_the_same(tmp_path, esper, undisturbed, strikes) == len(strikes)


AT_ONCE = [("tolaria.step", 150), *RESUMING.values(), *RESUMING.values()]
AT_ONCE_AND_LATER = [*AT_ONCE[:5], ("tolaria.step", 40), *RESUMING.values(), *RESUMING.values()]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("strikes", [AT_ONCE, pytest.param(AT_ONCE_AND_LATER, marks=pytest.mark.torture)], ids=len)
def test_a_run_that_was_killed_at_every_moment_of_its_resumes_ends_with_the_same_bits(
    tmp_path: Path, esper: Esper, undisturbed: Result, strikes: Sequence[tuple[str, int]]
) -> None:
    assert end_the_same(tmp_path, esper, undisturbed, strikes) == len(strikes)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_fifty_runs_that_were_killed_end_with_the_same_bits(tmp_path: Path, esper: Esper, undisturbed: Result) -> None:
    struck = 0
    for number in range(50):
        (place := tmp_path / str(number)).mkdir()
        struck += end_the_same(place, esper, undisturbed, drawn(1000 + number, 1 + number % 4))
    assert struck >= 50


IN_AN_ADOPTION = [
    f"{role}.adoption_{moment}"
    for role, moment in [
        *(("conductor", moment) for moment in ("before", "snapshot", "journaled", "after")),
        ("tolaria", "restored"),
    ]
]


@pytest.fixture(scope="module")
def adopted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict[str, Any]]:
    """A run in this process that adopts two forks, and its settings."""
    folder = tmp_path_factory.mktemp("adopted") / "run"
    return run(tiny_task(), tiny_config(run__dir=str(folder), **request.param)), request.param


@pytest.mark.torture
@pytest.mark.parametrize("adopted", [SHORT, WHOLE], indirect=True, ids=["short", "whole"])
@pytest.mark.parametrize("passage", [1, 2])
@pytest.mark.parametrize("point", IN_AN_ADOPTION)
def test_a_run_that_was_killed_in_an_adoption_ends_with_the_same_bits_and_is_proved(
    tmp_path: Path, esper: Esper, adopted: tuple[Result, dict[str, Any]], point: str, passage: int
) -> None:
    undisturbed, config = adopted
    assert end_the_same(tmp_path, esper, undisturbed, [(point, passage)], **config) == 1
    assert prove(tmp_path / "run").divergence is None


@pytest.mark.slow
@pytest.mark.parametrize("adopted", [SHORT], indirect=True, ids=["short"])
def test_a_run_that_was_killed_at_every_moment_of_its_adoptions_ends_with_the_same_bits(
    tmp_path: Path, esper: Esper, adopted: tuple[Result, dict[str, Any]]
) -> None:
    undisturbed, config = adopted
    strikes = [(point, 1) for point in IN_AN_ADOPTION]
    assert end_the_same(tmp_path, esper, undisturbed, strikes, **config) == len(strikes)


def drawn(seed: int, count: int) -> list[tuple[str, int]]:
    """Moments from a fixed seed, the later ones early in what is left of the run."""
    draw = random.Random(seed)
    chosen = [draw.choice([*MOMENTS.values(), *(RESUMING.values() if number else ())]) for number in range(count)]
    return [(point, draw.randint(1, max(1, often // (2 * count)))) for point, often in chosen]
