"""However a run ends, nothing of it is left: no process, no folder, no shared memory. Real processes, real signals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from esper.config import as_toml
from esper.journal import Kind, read
from esper.testing import tiny_config

TASK = "from esper.testing import tiny_task\n\ntask = tiny_task()\n"
END_WITHIN_S = 5.0
"""From the signal to the end of the process."""
STARTING_ENDS_WITHIN_S = 12.0
"""The same while Ray starts, which is not interrupted and takes some seconds where other work goes on."""


def session_of(folder: Path) -> int:
    """Session id of a process that has not ended; -1 of one that has and waits to be collected."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return -1 if fields[0] == "Z" else int(fields[3])


@dataclass
class Started:
    """A real `esper run` in a session of its own, as a shell would start it."""

    process: subprocess.Popen[bytes]
    run_dir: Path

    def children(self) -> list[str]:
        """Command lines of every process of its session; a title that Ray gives itself counts as one."""
        return [line for _, line in self.processes()]

    def processes(self) -> list[tuple[int, str]]:
        """Process id and command line of every process of its session."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and session_of(folder) == self.process.pid:
                    found.append((int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")))
            except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
                continue
        return found

    def ctrl_c(self) -> None:
        """What a terminal does: to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> float:
        """Wait for the end; seconds that it took."""
        start = time.monotonic()
        self.process.wait(timeout=60)
        return time.monotonic() - start


def hear_all() -> None:
    """Whoever runs the tests may ignore signals (`nohup`), which is inherited."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(folder: Path) -> Started:
    (folder / "task.py").write_text(TASK)
    (folder / "tiny.toml").write_text(as_toml(tiny_config()))
    run_dir = folder / "run"
    command = [sys.executable, "-m", "esper.cli", "run", f"{folder}/task.py:task", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [*command, "--config", str(folder / "tiny.toml"), "--run-dir", str(run_dir)],
            env=environment,
            start_new_session=True,
            preexec_fn=hear_all,
            stdout=out,
            stderr=err,
        )
    return Started(process, run_dir)


def remains(started: Started) -> list[str]:
    """What it left in the folders for passing things; every name of a run's carries its process id."""
    names = [name for place in ("/tmp", "/dev/shm") for name in os.listdir(place)]
    return [name for name in names if name.startswith("esper-") and f"-{started.process.pid}-" in name]


def begun(started: Started, kind: Kind) -> None:
    """Wait until the journal has a record of a kind."""
    journal = started.run_dir / "journal-1.log"
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        if journal.exists() and any(entry.kind is kind for entry in read(journal)[0]):
            return
        assert started.process.poll() is None, (started.run_dir.parent / "err").read_text()
        with pytest.raises(subprocess.TimeoutExpired):
            started.process.wait(timeout=0.05)
    pytest.fail(f"no {kind.name} in the journal")


def finish_whole(folder: Path) -> str:
    started = start(folder)
    started.process.wait(timeout=100)
    assert started.process.returncode == 0, (folder / "err").read_text()
    assert started.children() == []
    assert remains(started) == []
    digest: str = json.loads((folder / "out").read_text().splitlines()[-1])["weights_sha256"]
    return digest


def ray_begun(started: Started) -> None:
    """Wait until Ray's first process of a run is there."""
    limit = time.monotonic() + 60
    while not any("gcs_server" in child for child in started.children()):
        assert started.process.poll() is None, (started.run_dir.parent / "err").read_text()
        assert time.monotonic() < limit, "Ray never began"


def in_process(folder: Path) -> str:
    """The weights of the same run in one process, by the command line too."""
    out = folder / "alone.json"
    command = [sys.executable, "-m", "esper.cli", "run", f"{folder}/0/task.py:task", "--in-process", "--json"]
    with out.open("w") as file:
        subprocess.run(
            [*command, "--config", f"{folder}/0/tiny.toml", "--run-dir", f"{folder}/alone"],
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    digest: str = json.loads(out.read_text().splitlines()[-1])["weights_sha256"]
    return digest


def interrupt(folder: Path, after_s: float) -> None:
    started = start(folder)
    with pytest.raises(subprocess.TimeoutExpired):
        started.process.wait(timeout=after_s)
    started.ctrl_c()
    assert started.end() <= STARTING_ENDS_WITHIN_S
    assert started.process.returncode in (130, -signal.SIGINT)  # -2: before python was up
    assert started.children() == []
    assert remains(started) == []


def starts_and_stops(folder: Path, count: int) -> set[str]:
    """Returns the different weights that the whole runs among them ended with.

    Ctrl-C comes at a share of the first run's own time, Ray's start included; in its second half a run may have ended.
    """
    draw, digests, whole_s = random.Random(20), set(), 0.0
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        if number % 4 == 1:
            interrupt(place, draw.uniform(0.0, 0.5) * whole_s)
        else:
            began = time.monotonic()
            digests.add(finish_whole(place))
            whole_s = whole_s or time.monotonic() - began
    return digests


def test_three_starts_and_stops_leave_nothing(tmp_path: Path) -> None:
    assert starts_and_stops(tmp_path, 3) == {in_process(tmp_path)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_starts_and_stops_leave_nothing(tmp_path: Path) -> None:
    assert starts_and_stops(tmp_path, 20) == {in_process(tmp_path)}


def test_ctrl_c_in_a_round_ends_with_130_and_one_line(tmp_path: Path) -> None:
    started = start(tmp_path)
    begun(started, Kind.ROUND_ENDED)
    started.ctrl_c()
    assert started.end() <= END_WITHIN_S
    assert started.process.returncode == 130
    err = (tmp_path / "err").read_text()
    assert "Traceback" not in err
    assert "esper: interrupted; what was kept: esper resume" in err
    assert started.children() == []
    assert remains(started) == []
    assert read(started.run_dir / "journal-1.log")[0][-1].kind is Kind.RUN_FAILED


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_while_ray_starts_ends_the_run_when_it_has(tmp_path: Path, number: int, code: int) -> None:
    started = start(tmp_path)
    ray_begun(started)
    started.process.send_signal(number)
    assert started.end() <= STARTING_ENDS_WITHIN_S
    assert started.process.returncode == code, (tmp_path / "err").read_text()
    assert started.children() == []
    assert remains(started) == []
    entries, _ = read(started.run_dir / "journal-1.log")
    assert (entries[-1].kind, entries[-1].body["fence"]) == (Kind.RUN_FAILED, 0)


def test_an_impatient_ctrl_c_does_not_disturb_the_end(tmp_path: Path) -> None:
    started = start(tmp_path)
    begun(started, Kind.ROUND_ENDED)
    for _ in range(5):
        started.ctrl_c()
        with pytest.raises(subprocess.TimeoutExpired):
            started.process.wait(timeout=0.02)
    assert started.end() <= END_WITHIN_S
    assert started.process.returncode == 130
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert started.children() == []
    assert remains(started) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_wish_to_end_drains_to_the_next_fence_and_ends_with_143(tmp_path: Path, number: int) -> None:
    started = start(tmp_path)
    begun(started, Kind.ROUND_ENDED)
    started.process.send_signal(number)
    assert started.end() <= END_WITHIN_S
    assert started.process.returncode == 143
    entries, _ = read(started.run_dir / "journal-1.log")
    assert (entries[-1].kind, entries[-1].body["error"]) == (Kind.RUN_FAILED, "Drained")
    fence = max(e.body["fence"] for e in entries if e.kind is Kind.ROUND_ENDED)
    assert entries[-1].body["fence"] == fence
    assert max(e.body["fence"] for e in entries if e.kind is Kind.CHECKPOINT_COMMITTED) == fence
    assert started.children() == []
    assert remains(started) == []


def test_a_ray_that_dies_under_a_run_is_a_typed_failure(tmp_path: Path) -> None:
    started = start(tmp_path)
    begun(started, Kind.ROUND_ENDED)
    (raylet,) = [pid for pid, line in started.processes() if "/raylet/raylet " in line]
    os.kill(raylet, signal.SIGKILL)
    assert started.end() <= 60
    assert started.process.returncode == 3, (tmp_path / "err").read_text()
    told = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert told["error"] in ("ActorLost", "TrainerRankLost")
    assert started.children() == []
    assert remains(started) == []


@pytest.mark.slow
def test_a_runtime_that_was_killed_whole_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    started = start(tmp_path / "0")
    begun(started, Kind.CHECKPOINT_COMMITTED)
    begun(started, Kind.INCUBATION_BEGUN)
    os.killpg(started.process.pid, signal.SIGKILL)
    started.process.wait(timeout=5)
    out = tmp_path / "resumed.json"
    with out.open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "esper.cli", "resume", str(started.run_dir), "--json"],
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    told = json.loads(out.read_text().splitlines()[-1])
    assert (told["weights_sha256"], told["resumes"]) == (in_process(tmp_path), 1)


def test_killed_driver_takes_its_actors_along(tmp_path: Path) -> None:
    """Ray's two agents notice only after a minute that their raylet is gone; they hold nothing of the run."""
    started = start(tmp_path)
    begun(started, Kind.ROUND_ENDED)
    before = [child for child in started.children() if "Shell" in child]
    started.process.kill()
    started.process.wait(timeout=5)
    limit = time.monotonic() + 20
    while any("Agent" not in child for child in started.children()):
        assert time.monotonic() < limit, started.children()
    assert len(before) == 6
    assert [child for child in started.children() if "Agent" not in child] == []
