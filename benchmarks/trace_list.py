"""CPU seconds of `esper trace list` over many spans, compared with `json.loads` of the same lines.

The lines are those of a real run, copied with new ids into as many span files as a run on actors has. The whole table
is drawn. The goal, 3 s for 100,000 spans, is for the median of the wall seconds of the command on a quiet machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from _common import Outcome, Row, Spread, main, scratch

import esper
from esper.testing import tiny_config, tiny_task
from esper.trace.span_files import PREFIX, SUFFIX

SPANS = 100_000
GOAL_S = 3.0
FILES = 6
"""Span files. A run on actors with one manager has as many processes."""
LOADS = "import json, sys\nfor name in sys.argv[1:]:\n    for line in open(name, 'rb'): json.loads(line)"


def copies(run: Path, files: Sequence[Path]) -> None:
    """Write at least `SPANS` spans: the lines of the run again and again, each time with new trace ids, into the next
    file.
    """
    lines = [line for file in (run / "telemetry").glob(f"{PREFIX}*{SUFFIX}") for line in file.read_text().splitlines()]
    ids = [json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"] for line in lines]
    written = 0
    with ExitStack() as stack:
        opened = cycle([stack.enter_context(file.open("w", encoding="utf-8")) for file in files])
        while written < SPANS:
            new = {trace_id: os.urandom(16).hex() for trace_id in ids}
            next(opened).writelines(line.replace(old, new[old]) + "\n" for line, old in zip(lines, ids, strict=True))
            written += len(lines)


def start(arguments: list[str]) -> tuple[float, float]:
    """Return CPU seconds and wall seconds of one process of Python."""
    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def measure(repetitions: int) -> Outcome:
    """Time the command and the floor one after the other, in each repetition."""
    with scratch() as folder:
        result = esper.run(tiny_task(), tiny_config(run__dir=str(folder / "run")))
        (folder / "many" / "telemetry").mkdir(parents=True)
        files = [folder / "many" / "telemetry" / f"{PREFIX}conductor-{one}{SUFFIX}" for one in range(FILES)]
        copies(Path(result.run_dir), files)
        commands = {"esper trace list": ["-m", "esper", "trace", "list", str(folder / "many")]}
        commands["json.loads"] = ["-c", LOADS, *map(str, files)]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(repetitions):
            for name, words in commands.items():
                times[name].append(start(words))
    cpu = {name: Spread(tuple(one for one, _ in found)) for name, found in times.items()}
    wall = Spread(tuple(one for _, one in times["esper trace list"]))
    told = f"esper trace list of {SPANS:,} spans in {FILES} files, with its table"
    rows = [
        Row.judged(f"{told}, wall s", wall.median, GOAL_S, f"<= {GOAL_S} s", wall.median <= GOAL_S, "goal"),
        Row.told(f"{told}, CPU s over json.loads", cpu["esper trace list"].median, cpu["json.loads"].median),
    ]
    return Outcome(rows, {**{f"{name}, CPU s": one for name, one in cpu.items()}, f"{told}, wall s": wall})


if __name__ == "__main__":
    main("trace_list", __doc__, measure)
