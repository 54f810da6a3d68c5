"""From the first write that a full disk refuses to the end of the process, in one process and on actors.

Each repetition is another size of the disk, from 4 KiB up, under another store of the run. That such a run ends typed
and is resumed to the same bits is shown by tests/durable/test_full_disk.py, whose kit this file uses. It mounts tmpfs
in a namespace of its own, so it needs the right to.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _common import Outcome, Row, Spread, main, scratch

KIT = Path(__file__).parents[1] / "tests" / "durable" / "kit"
sys.path.insert(0, str(KIT))
from full_disk import ON_ACTORS, SIZES, STORES  # noqa: E402  # the kit is no package

MOST_S = 30.0
WAYS = {"in one process": (STORES, ()), "on actors": (ON_ACTORS, ("--ray",))}


def measure(repetitions: int) -> Outcome:
    """As many sizes as repetitions, in one process and then on actors."""
    found = {way: _ends(repetitions, *how) for way, how in WAYS.items()}
    rows = [
        Row.judged(f"{way}: the longest of {len(ends)} ends (s)", max(ends), MOST_S, "<= 30 s", max(ends) <= MOST_S)
        for way, ends in found.items()
    ]
    return Outcome(rows, {f"{way} (s)": Spread(tuple(ends)) for way, ends in found.items()})


def _ends(sizes: int, stores: tuple[str, ...], options: tuple[str, ...]) -> list[float]:
    """Seconds to the end, of each run that a full disk ended."""
    ends = []
    with scratch() as folder:
        for number, size in enumerate(SIZES[:sizes]):
            place = folder / str(size)
            place.mkdir()
            told = _on_a_disk_of(place, stores[number % len(stores)], size, options)
            if told["code"] != 0:
                ends.append(told["to_the_end_s"])
    return ends


def _on_a_disk_of(folder: Path, store: str, size: int, options: tuple[str, ...]) -> dict[str, Any]:
    command = [sys.executable, str(KIT / "full_disk.py"), str(folder), store, str(size), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"    {' '.join(options)} {store} {size}: {told}", file=sys.stderr)
    return told


if __name__ == "__main__":
    main("disk_full", __doc__.partition("\n")[0], measure, repetitions=len(SIZES))
