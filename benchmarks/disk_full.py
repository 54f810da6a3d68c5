"""Times from the first write that a full disk refuses to the end of the process, in one process and on actors.

Each repetition has another size of the disk, from 4 KiB up. It also puts another store of the run on this disk, for
example the journal. Each repetition makes a run in one process and a run on actors. A line for each run is printed to
standard error, with the load of the machine. docs/durability.md has figures of one day. tests/durable/test_full_disk.py
checks that a run ends with a typed error and is resumed to the same bits. This file uses the kit of that test. The kit
mounts tmpfs in a new namespace. This needs a permission. A repetition took about 80 s on two busy cores. `--repetitions
20` tries every size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import Outcome, Row, Spread, main, scratch

KIT = Path(__file__).parents[1] / "tests" / "durable" / "kit"
sys.path.insert(0, str(KIT))
from full_disk import ON_ACTORS, SIZES, STORES  # noqa: E402  # the kit is no package

MOST_S = 30.0
FILLED = tuple(store for store in STORES if store != "field_reports")
"""Stores that fill the disk. The field reports of this run fit into the smallest disk, so they are left out."""
WAYS = {
    "in one process": (FILLED, ()),
    "on actors": (tuple(store for store in FILLED if store in ON_ACTORS), ("--ray",)),
}
ENDED, OTHER_ENDS = 3, {0: "had room", 2: "was not begun"}
"""Exit code of a run that was ended by a full disk. Meanings of other exit codes."""


def measure(repetitions: int) -> Outcome:
    """Measure as many sizes as there are repetitions, first in one process, then on actors."""
    print("| where | store | bytes | ended by | to the end (s) | load |\n|---|---|---|---|---|---|", file=sys.stderr)
    with scratch() as folder:
        told = {way: _runs(folder / way.replace(" ", "-"), way, some_sizes(repetitions)) for way in WAYS}
    ends = {way: tuple(one["to_the_end_s"] for one in runs if one["code"] == ENDED) for way, runs in told.items()}
    weights = {one["weights"] for runs in told.values() for one in runs if one["weights"]}
    rows = [
        Row.judged(f"{way}: the longest of {len(times)} ends (s)", max(times), MOST_S, "<= 30 s", max(times) <= MOST_S)
        for way, times in ends.items()
    ]
    codes = [one["code"] for runs in told.values() for one in runs]
    untyped = sum(code != ENDED and code not in OTHER_ENDS for code in codes)
    rows.append(Row.judged("runs with an untyped end", untyped, len(codes), "0", untyped == 0))
    same = Row.judged("different weights of the runs at their end", len(weights), 1, "<= 1", len(weights) <= 1)
    return Outcome([*rows, same], {f"{way} (s)": Spread(times) for way, times in ends.items()})


def some_sizes(count: int) -> list[int]:
    """Return `count` of the sizes, at even distances in their list, beginning with the smallest."""
    return [SIZES[number * len(SIZES) // count] for number in range(min(count, len(SIZES)))]


def _runs(folder: Path, way: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Make a run for each size, and return their results. The stores alternate."""
    stores, options = WAYS[way]
    found = []
    for number, size in enumerate(sizes):
        place, store = folder / str(size), stores[number % len(stores)]
        place.mkdir(parents=True)
        told = _on_a_disk_of(place, store, size, options)
        end = f"{told['to_the_end_s']:.1f}" if told["code"] == ENDED else OTHER_ENDS.get(told["code"], "UNTYPED")
        load = f"{os.getloadavg()[0]:.0f}"
        print(f"| {way} | {store} | {size} | {told.get('error', '')} | {end} | {load} |", file=sys.stderr)
        found.append(told)
    return found


def _on_a_disk_of(folder: Path, store: str, size: int, options: tuple[str, ...]) -> dict[str, Any]:
    command = [sys.executable, str(KIT / "full_disk.py"), str(folder), store, str(size), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    main("disk_full", __doc__.partition("\n")[0], measure, repetitions=6)
