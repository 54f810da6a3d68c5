"""However a run ends, nothing of it is left: no process, no folder, no shared memory. Real processes, real signals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.temporary_folders import SHARED_MEMORY, TEMPORARY, sweep
from esper.archive.journal import RecordKind, read
from esper.config.joined import as_toml
from esper.flow.result import Result
from esper.flow.stopping import SAME_REQUEST_S
from esper.testing import tiny_config, until

pytestmark = pytest.mark.integration

AT_LEAST = 8
"""Processes that every run has at some time: its own two, of Ray the store of names, the raylet and its two agents, and
more than three actors.
"""

TASK = "from esper.testing import tiny_task\n\ntask = tiny_task()\n"


def session_of(folder: Path) -> int:
    """Session id of a process; -1 if it has ended and waits to be collected."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return -1 if fields[0] == "Z" else int(fields[3])


@dataclass
class Started:
    """A real `esper run` in a session of its own, as a shell would start it."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    older: frozenset[str]
    """Names of temporary folders that were there before; the system gives process ids again."""
    seen: set[int] = field(default_factory=set)
    """Ids of all processes that were seen in its session."""

    def children(self) -> list[str]:
        """Command lines of every process of its session; a title that Ray gives itself counts as one."""
        return [line for _, line in self.processes()]

    def processes(self) -> list[tuple[int, str]]:
        """Process id and command line of every process of its session.

        A process without a command line has ended: its memory is gone already, and the system has yet to remove it,
        which takes a tenth of a second on a busy machine.
        """
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and session_of(folder) == self.process.pid:
                    line = (folder / "cmdline").read_text().replace("\0", " ")
                    found.extend([(int(folder.name), line)] if line else [])
            except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
                continue
        self.seen |= {pid for pid, _ in found}
        return found

    def ctrl_c(self) -> None:
        """What a terminal does: to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def running(self) -> None:
        """Fails if the process has ended, with its output."""
        assert self.process.poll() is None, (self.run_dir.parent / "err").read_text()

    def ended_with(self, *codes: int) -> None:
        """Wait for the end: the exit code is one of these, and nothing of it is left."""
        until(lambda: self.process.poll() is not None or len(self.processes()) > 1)  # the child has the folders
        assert self.process.wait() in codes, (self.run_dir.parent / "err").read_text()
        assert self.children() == []
        assert remains(self) == []


def hear_all() -> None:
    """Whoever runs the tests may ignore signals (`nohup`), which is inherited."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(folder: Path, *before: str, **settings: Any) -> Started:
    """Begin a run of its own. `before` stands in front of its command, `settings` are values of the config."""
    (folder / "task.py").write_text(TASK)
    (folder / "tiny.toml").write_text(as_toml(tiny_config(**settings)))
    run_dir = folder / "run"
    command = [*before, sys.executable, "-m", "esper", "run", f"{folder}/task.py:task", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    older = temporary_folders()
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [*command, "--config", str(folder / "tiny.toml"), "--run-dir", str(run_dir)],
            env=environment,
            start_new_session=True,
            preexec_fn=hear_all,
            stdout=out,
            stderr=err,
        )
    return Started(process, run_dir, older)


def temporary_folders() -> frozenset[str]:
    """Names of esper's temporary folders, of all processes."""
    names = [name for place in (TEMPORARY, SHARED_MEMORY) for name in os.listdir(place)]
    return frozenset(name for name in names if name.startswith("esper-"))


def remains(started: Started) -> list[str]:
    """Its temporary folders that are left; each has the id of one of its processes in its name."""
    ours = [f"-{pid}-" for pid in started.seen]
    return [name for name in temporary_folders() - started.older if any(pid in name for pid in ours)]


def begun(started: Started, kind: RecordKind) -> None:
    """Wait until the journal has a record of a kind."""
    journal = started.run_dir / "journal-1.log"

    def happened() -> bool:
        if journal.exists() and any(entry.kind is kind for entry in read(journal)[0]):
            return True
        started.running()
        return False

    until(happened, every_s=0.02)


def finish_whole(folder: Path) -> str:
    start(folder).ended_with(0)
    digest: str = json.loads((folder / "out").read_text().splitlines()[-1])["weights_sha256"]
    return digest


def ray_begun(started: Started) -> int:
    """Wait until Ray's first process of a run is there; its id."""
    found = list[int]()

    def happened() -> bool:
        started.running()
        found.extend(pid for pid, line in started.processes() if "gcs_server" in line)
        return bool(found)

    until(happened)
    return found[0]


def told(*words: str) -> dict[str, Any]:
    """What a command of esper prints for `--json`; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "esper", *words, "--json"],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def interrupt(folder: Path, processes: int) -> None:
    """Ctrl-C when a run has so many processes: its own is the first, Ray's and the actors' follow."""
    started = start(folder)

    def so_many() -> bool:
        started.running()
        return len(started.processes()) >= processes

    until(so_many)
    started.ctrl_c()
    started.ended_with(130, -signal.SIGINT)  # -2: before python was up


def starts_and_stops(folder: Path, count: int) -> set[str]:
    """Returns the different weights that the whole runs among them ended with.

    Every fourth is interrupted while it starts.
    """
    draw, digests = random.Random(20), set()
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        if number % 4 == 1:
            interrupt(place, draw.randint(1, AT_LEAST))
        else:
            digests.add(finish_whole(place))
    return digests


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=[pytest.mark.torture, pytest.mark.timeout(7200)])])
def test_starts_and_stops_leave_nothing(tmp_path: Path, undisturbed: Result, count: int) -> None:
    assert starts_and_stops(tmp_path, count) == {undisturbed.weights_sha256}


@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.torture), 5])
def test_ctrl_c_in_a_round_ends_with_130_and_one_line_and_an_impatient_one_does_not_disturb_the_end(
    tmp_path: Path, times: int
) -> None:
    started = start(tmp_path)
    begun(started, RecordKind.ROUND_ENDED)
    for _ in range(times):
        if started.process.poll() is None:
            started.ctrl_c()
            time.sleep(0.02)
    started.ended_with(130)
    err = (tmp_path / "err").read_text()
    assert "Traceback" not in err
    assert "esper: interrupted; to resume it: esper resume" in err
    assert read(started.run_dir / "journal-1.log")[0][-1].kind is RecordKind.RUN_FAILED


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.torture)]
)
def test_a_signal_while_ray_starts_ends_the_run_when_it_has(tmp_path: Path, number: int, code: int) -> None:
    started = start(tmp_path)
    ray_begun(started)
    started.process.send_signal(number)
    started.ended_with(code)
    entries, _ = read(started.run_dir / "journal-1.log")
    assert (entries[-1].kind, entries[-1].body["fence"]) == (RecordKind.RUN_FAILED, 0)


@pytest.mark.torture
@pytest.mark.parametrize("to_the_group", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGTERM, 130),
        (signal.SIGTERM, signal.SIGINT, 143),
    ],
)
def test_a_second_signal_ends_a_start_of_ray_that_does_not_end(
    tmp_path: Path, first: int, second: int, code: int, to_the_group: bool
) -> None:
    started = start(tmp_path, ray__start_deadline_s=3600.0)
    os.kill(ray_begun(started), signal.SIGSTOP)  # Ray's start waits for it, for as long as it is asked to
    send = os.killpg if to_the_group else os.kill
    send(started.process.pid, first)
    time.sleep(2 * SAME_REQUEST_S)  # a signal that comes sooner is the same request
    started.running()
    send(started.process.pid, second)
    started.ended_with(code)
    assert read(started.run_dir / "journal-1.log")[0][-1].kind is RecordKind.RUN_FAILED


@pytest.mark.torture
def test_without_a_loopback_device_a_run_ends_at_the_deadline_of_its_start(tmp_path: Path) -> None:
    alone = ("unshare", "--map-root-user", "--net")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets us make no network namespace")
    started = start(tmp_path, *alone, ray__start_deadline_s=5.0)
    started.ended_with(3)
    failure = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert failure["error"] == "StartDeadlineExceeded"
    assert str(started.run_dir) in failure["next"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.torture)])
def test_sigterm_drains_to_the_next_fence_and_exits_with_143(tmp_path: Path, number: int) -> None:
    started = start(tmp_path)
    begun(started, RecordKind.ROUND_ENDED)
    started.process.send_signal(number)
    started.ended_with(143)
    entries, _ = read(started.run_dir / "journal-1.log")
    assert (entries[-1].kind, entries[-1].body["error"]) == (RecordKind.RUN_FAILED, "Drained")
    fence = max(e.body["fence"] for e in entries if e.kind is RecordKind.ROUND_ENDED)
    assert entries[-1].body["fence"] == fence
    assert max(e.body["fence"] for e in entries if e.kind is RecordKind.CHECKPOINT_COMMITTED) == fence


def test_a_ray_that_dies_under_a_run_is_a_typed_failure(tmp_path: Path) -> None:
    started = start(tmp_path)
    begun(started, RecordKind.ROUND_ENDED)
    (raylet,) = [pid for pid, line in started.processes() if "/raylet/raylet " in line]
    os.kill(raylet, signal.SIGKILL)
    started.ended_with(3)
    failure = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert failure["error"] in ("ActorLost", "TrainerRankLost")


@pytest.mark.torture
@pytest.mark.parametrize("head", ["gcs_server", "raylet/raylet "])
def test_a_ray_that_dies_while_it_starts_ends_the_run_with_3_and_its_last_words(tmp_path: Path, head: str) -> None:
    draw, runs = random.Random(head), list[Started]()
    for number in range(10):
        place = tmp_path / str(number)
        place.mkdir()
        started = start(place)

        def killed(started: Started = started) -> bool:
            started.running()
            found = [pid for pid, line in started.processes() if head in line]
            if found:
                time.sleep(draw.uniform(0.0, 2.0))  # a moment of the start; what follows holds at each
                os.kill(found[0], signal.SIGKILL)
            return bool(found)

        until(killed)
        assert started.process.wait() == 3, (place / "err").read_text()
        runs.append(started)
        failure = json.loads((place / "out").read_text().splitlines()[-1])
        print(number, failure["error"], failure["message"][:100])
        assert failure["error"] in ("ActorLost", "TrainerRankLost", "PlacementUnavailable")
        assert str(started.run_dir) in failure["next"]
    sweep(TEMPORARY, SHARED_MEMORY)  # as the next start does
    assert [left for started in runs for left in remains(started)] == []


@pytest.mark.torture
def test_a_run_whose_processes_were_all_killed_resumes_to_the_same_bits(tmp_path: Path, undisturbed: Result) -> None:
    started = start(tmp_path)
    incubating(started)
    os.killpg(started.process.pid, signal.SIGKILL)
    started.process.wait()
    assert gone_on(started) == (undisturbed.weights_sha256, 1)


def test_a_killed_driver_ends_its_actors_and_its_run_resumes_to_the_same_bits(
    tmp_path: Path, undisturbed: Result
) -> None:
    """Ray's two agents notice only after a minute that their raylet is gone; they hold nothing of the run."""
    started = start(tmp_path)
    incubating(started)
    before = [child for child in started.children() if "Shell" in child]
    started.process.kill()
    started.process.wait()
    until(lambda: all("Agent" in child for child in started.children()))
    assert len(before) == 6
    assert gone_on(started) == (undisturbed.weights_sha256, 1)


def incubating(started: Started) -> None:
    """Wait until a run has a checkpoint and a tournament has begun."""
    begun(started, RecordKind.CHECKPOINT_COMMITTED)
    begun(started, RecordKind.INCUBATION_BEGUN)


def gone_on(started: Started) -> tuple[str, int]:
    """Weights and resumes of a run that the command line resumed."""
    resumed = told("resume", str(started.run_dir))
    return resumed["weights_sha256"], resumed["resumes"]
