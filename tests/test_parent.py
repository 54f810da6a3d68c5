"""The parent process of a run's command line: the last words, the exit code, the signals. Real processes, no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ENDS = """
import os, signal, sys
from esper.parent import split, tell

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
    done = subprocess.run([sys.executable, "-m", "esper.cli", *words], capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["error"], told["run_dir"]) == (3, "ActorLost", None)
    assert told["message"].startswith("conductor: its process was killed by SIGKILL")
    assert f"message: {told['message']}\n" in done.stderr
