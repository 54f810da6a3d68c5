"""The parent process of a run's command line: the last words, the exit code, the signals. Real processes, no Ray."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from esper.cli import main, run_command
from esper.ground import parent

ENDS = """
import os, signal, sys
from esper.ground.parent import split, tell

def wait_for(number):
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    os.kill(os.getppid(), number)
    tell(reason=signal.Signals(signal.sigwait({number})).name)
    os._exit(0)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for act in (
    lambda: os._exit(1),
    lambda: os.kill(os.getpid(), signal.SIGKILL),
    lambda: (tell(run_dir="/runs/one"), os.abort()),
    lambda: (tell(run_dir="/runs/one"), tell(code=4), os._exit(1)),
    lambda: wait_for(signal.SIGTERM),
    lambda: wait_for(signal.SIGUSR1),
):
    end = split()
    if end is None:
        act()
    print(end.status, end.code, end.run_dir, end.reason)

reading, writing = os.pipe()
parent = os.fork()
if parent == 0:
    os.close(reading)
    if split() is None:
        os.write(writing, b"up")
        signal.pause()
os.close(writing)
assert os.read(reading, 2) == b"up"
os.kill(parent, signal.SIGKILL)
os.read(reading, 1)  # returns when the last process that could write has ended
print("killed")
"""


def test_a_parent_knows_how_its_child_ended_passes_signals_on_and_takes_it_along() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "1 None None None",
        "-9 None None None",
        "-6 None /runs/one None",
        "1 4 /runs/one None",
        "0 None None SIGTERM",
        "0 None None SIGUSR1",
        "killed",
    ]


def test_a_command_that_is_killed_says_so_and_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    words = ["run", str(tmp_path / "task.py") + ":task", "--json", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "esper", *words], capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["error"], told["run_dir"]) == (3, "ActorLost", None)
    assert told["message"].startswith("conductor: its process was killed by SIGKILL")
    assert f"message: {told['message']}\n" in done.stderr


def test_a_system_that_refuses_another_process_is_a_failure_of_its_own_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(parent, "split", refused)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["esper", "run", "--json"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    told = json.loads(capsys.readouterr().out)
    assert (ended.value.code, told["error"]) == (3, "PlacementUnavailable")
    assert told["message"] == "conductor: the system refused a process for the run: Resource temporarily unavailable"


def test_a_resume_that_ends_before_it_goes_on_names_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    (tmp_path / "run.json").touch()
    facts: dict[str, object] = {}
    monkeypatch.setattr(parent, "tell", facts.update)
    monkeypatch.setattr(run_command, "resume", fails)
    with pytest.raises(typer.Exit) as ended:
        run_command.execute_resume(tmp_path, None, {}, None, in_process=True, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (ended.value.exit_code, facts, told["run_dir"]) == (3, {"run_dir": str(tmp_path)}, str(tmp_path))
    assert told["next"].endswith(f"esper resume {tmp_path}")
    assert told["kept"] != "nothing was written"
