"""Kills a process that appends, again and again, and looks at what it left. Run by itself, without torch or pytest:

    python -I -S killing.py ROOT FOLDER KILLS SEED

A child appends and writes to a pipe what was acknowledged; at a moment drawn from SEED it is killed. Then every record
that it acknowledged must be there, after those of its predecessors, and nothing else but the one batch under way.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

ACKS, SPIN_S = 12, 0.002
"""A child is killed at most so long after its so-manieth acknowledgement."""
KILLS_PER_LOG = 25
LIMIT_BYTES = 700


def import_durable(root: str) -> None:
    """Import esper.durable without esper's own __init__, which brings torch."""
    bare = ModuleType("esper")
    bare.__path__ = [str(Path(root) / "esper")]
    sys.modules["esper"] = bare


def batch(life: int, number: int) -> list[tuple[int, bytes]]:
    """What the child of this life appends as its so-manieth; the same in parent and child."""
    rng = random.Random(f"{life} {number}")
    return [
        (1, f"{life} {number} {n} ".encode() + rng.randbytes(rng.randrange(60))) for n in range(rng.randrange(1, 4))
    ]


def child(path: Path, life: int, segmented: bool, pipe: int) -> None:
    from esper.durable.log import FramedLog
    from esper.durable.segments import SegmentedLog

    log = SegmentedLog.open(path, limit_bytes=LIMIT_BYTES) if segmented else FramedLog.open(path / "a.log")
    for number in range(100_000):
        log.append_many(batch(life, number))
        os.write(pipe, b"a")


def live_and_die(path: Path, life: int, segmented: bool, rng: random.Random) -> int:
    """Returns how many batches the child acknowledged before it was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            child(path, life, segmented, writing)
        finally:
            os._exit(1)
    os.close(writing)
    wanted, acknowledged = rng.randrange(ACKS), b""
    while len(acknowledged) < wanted and (more := os.read(reading, wanted - len(acknowledged))):
        acknowledged += more
    until = time.perf_counter() + rng.random() * SPIN_S
    while time.perf_counter() < until:
        pass
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    while more := os.read(reading, 100):
        acknowledged += more
    os.close(reading)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise AssertionError(f"life {life} ended by itself")
    return len(acknowledged)


def read(path: Path, segmented: bool) -> list[bytes]:
    """Raises: AssertionError: there is damage that is no torn tail."""
    from esper.durable.log import iterate
    from esper.durable.log_format import LoadError
    from esper.durable.segments import segments

    files = segments(path) if segmented else [one for one in [path / "a.log"] if one.exists()]
    found = [one for file in files for one in iterate(file)]
    if any(isinstance(one, LoadError) for one in found[:-1]):
        raise AssertionError(f"damage between records: {found}")
    return [one.payload for one in found if not isinstance(one, LoadError)]


def main(root: str, folder: str, kills: int, seed: int) -> dict[str, int]:
    import_durable(root)
    rng = random.Random(seed)
    told = {"kills": 0, "acknowledged": 0, "under way and kept": 0, "before the first": 0}
    expected: list[bytes] = []
    for life in range(kills):
        segmented = life // KILLS_PER_LOG % 2 == 1
        path = Path(folder) / str(life // KILLS_PER_LOG)
        if life % KILLS_PER_LOG == 0:
            path.mkdir()
            expected = []
        count = live_and_die(path, life, segmented, rng)
        expected += [payload for number in range(count) for _, payload in batch(life, number)]
        found = read(path, segmented)
        under_way = [payload for _, payload in batch(life, count)]
        if found[: len(expected)] != expected or found[len(expected) :] != under_way[: len(found) - len(expected)]:
            raise AssertionError(f"life {life}: {len(expected)} records were acknowledged, found {found}")
        told["kills"] += 1
        told["acknowledged"] += count
        told["under way and kept"] += len(found) > len(expected)
        told["before the first"] += count == 0
        expected = found
    return told


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
