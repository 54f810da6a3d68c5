"""CPU seconds of commands that only read, compared with a process of Python that only imports typer.

CPU seconds are compared, because wall time depends on the load of the machine. The goals (0.3 s for the help, 1 s for
an inspection) are for wall seconds on a quiet machine. The result has wall seconds, too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from _common import Outcome, Row, Spread, main, scratch

from esper.testing import tiny_config, tiny_task

FLOOR = "python -c 'import typer'"
GOALS_S = {"esper --help": 0.3, "esper inspect RUN": 1.0}
"""Command -> goal in wall seconds."""


def lines(run: Path) -> dict[str, list[str]]:
    """Return a mapping from the name of a command to the arguments of Python."""
    esper = ["-m", "esper"]
    return {
        "python -c pass": ["-c", "pass"],
        FLOOR: ["-c", "import typer"],
        "esper --help": [*esper, "--help"],
        "esper --version": [*esper, "--version"],
        "esper config": [*esper, "config"],
        "esper inspect RUN": [*esper, "inspect", str(run)],
        "esper checkpoint list RUN": [*esper, "checkpoint", "list", str(run)],
        "esper log dump RUN": [*esper, "log", "dump", str(run)],
        "import esper.config.joined": ["-c", "import esper.config.joined"],
        "import torch": ["-c", "import torch"],
    }


def start(arguments: list[str]) -> tuple[float, float]:
    """Return CPU seconds and wall seconds of one process of Python."""
    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def measure(repetitions: int) -> Outcome:
    """Start every command once in each repetition.

    The first repetition does not count, because it fills the file caches.
    """
    with scratch() as folder:
        run = a_run(folder / "run")
        named = lines(run)
        cpu: dict[str, list[float]] = {name: [] for name in named}
        wall: dict[str, list[float]] = {name: [] for name in named}
        for repetition in range(repetitions + 1):
            for name, arguments in named.items():
                seconds = start(arguments)
                if repetition:
                    cpu[name].append(seconds[0])
                    wall[name].append(seconds[1])
    spreads = {f"{name}, CPU s": Spread(tuple(found)) for name, found in cpu.items()}
    spreads |= {f"{name}, wall s": Spread(tuple(found)) for name, found in wall.items()}
    floor = Spread(tuple(cpu[FLOOR])).median
    rows = [Row.told(f"{name}, CPU s over {FLOOR}", Spread(tuple(found)).median, floor) for name, found in cpu.items()]
    for name, goal in GOALS_S.items():
        best = Spread(tuple(wall[name])).lower_quartile
        rows.append(Row.judged(f"{name}, wall s", best, goal, f"<= {goal} s", best <= goal, "goal"))
    return Outcome(rows, spreads)


def a_run(path: Path) -> Path:
    """Make a run, and return its directory."""
    from esper import run  # loads torch, but not in the measured processes

    run(tiny_task(), tiny_config(run__dir=str(path)))
    return path


if __name__ == "__main__":
    main("imports", __doc__, measure)
