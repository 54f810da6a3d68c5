"""Times from a signal to the end of a run on actors, and from a policy's deadline to the end of its process.

The run is a real `esper run` of the tiny task in a separate session. tests/actors/test_clean_ends.py checks that
nothing of the run is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _common import Outcome, Row, Spread, main, scratch

from actors.embedded_ray import EmbeddedRay
from esper import OnRay, run
from esper.archive.journal import RecordKind, read
from esper.config.joined import RunConfig, as_toml
from esper.errors import PolicyDeadlineExceeded
from esper.testing import tiny_config, tiny_task, until

TASK = "from esper.testing import tiny_task\n\ntask = tiny_task()\n"
DEADLINE_S = 1.0
MOST_S = {"Ctrl-C in a round": 5.0, "SIGTERM in a round": 5.0, "Ctrl-C while Ray starts": 12.0}
"""Largest allowed number of seconds until the end. The limit is higher while Ray starts, because the start is not
interrupted."""


def measure(repetitions: int) -> Outcome:
    """Measure each signal, then a policy that hangs in a C call, in every repetition."""
    found: dict[str, list[float]] = {name: [] for name in (*MOST_S, "policy")}
    with scratch() as folder:
        for number in range(repetitions):
            place = folder / str(number)
            place.mkdir()
            found["Ctrl-C in a round"].append(_ended(place / "a", signal.SIGINT, _in_a_round))
            found["SIGTERM in a round"].append(_ended(place / "b", signal.SIGTERM, _in_a_round))
            found["Ctrl-C while Ray starts"].append(_ended(place / "c", signal.SIGINT, _starting))
            found["policy"].append(_overdue(place / "d"))
    spreads = {f"{name} (s)": Spread(tuple(values)) for name, values in found.items()}
    rows = [_row(name, spreads[f"{name} (s)"].median, most_s) for name, most_s in MOST_S.items()]
    late = "policy in a C call: seconds beyond its deadline, median"
    return Outcome([*rows, _row(late, spreads["policy (s)"].median, 0.1)], spreads)


def _row(name: str, value: float, most: float) -> Row:
    return Row.judged(name, value, most, f"<= {most} s", value <= most, "goal")


def _ended(folder: Path, number: signal.Signals, is_time: Callable[[Path], bool]) -> float:
    """Return the seconds from a signal to the end of the process. The signal is sent when `is_time` returns True."""
    folder.mkdir()
    (folder / "task.py").write_text(TASK)
    (folder / "tiny.toml").write_text(as_toml(tiny_config(run__dir=str(folder / "run"))))
    words = ["run", f"{folder}/task.py:task", "--config", str(folder / "tiny.toml"), "--json"]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "esper", *words],
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=_hear_all,
        )
    until(lambda: is_time(folder / "run") or process.poll() is not None)
    began_s = time.monotonic()
    os.killpg(process.pid, number)
    code = process.wait()
    ended_s = time.monotonic()
    if code != 128 + number:
        raise SystemExit(f"ended with {code} after {number.name}:\n{(folder / 'said').read_text()}")
    return ended_s - began_s


def _hear_all() -> None:
    """Restore the default handlers. A process in the background may inherit handlers that ignore the signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _in_a_round(run_dir: Path) -> bool:
    journal = run_dir / "journal-1.log"
    return journal.exists() and any(entry.kind is RecordKind.ROUND_ENDED for entry in read(journal)[0])


def _starting(run_dir: Path) -> bool:
    return (run_dir / "run.json").exists()


def _overdue(run_dir: Path) -> float:
    """Return the seconds from a policy's deadline to the end of the policy's process."""
    hangs = {"faults": [{"point": "tamiyo.decide", "fault": "hang_c"}]}
    config = RunConfig.model_validate(
        {**tiny_config(run__dir=str(run_dir), policy__deadline_s=DEADLINE_S).model_dump(), **hangs}
    )
    try:
        with EmbeddedRay(slots=4) as embedded:
            run(tiny_task(), config, on=OnRay(embedded))
    except PolicyDeadlineExceeded as late:
        return late.elapsed_s - DEADLINE_S
    raise SystemExit("the policy was not overdue")


if __name__ == "__main__":
    main("clean_ends", __doc__.partition("\n")[0], measure)
