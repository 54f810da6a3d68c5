"""One run on a disk of a given size, as a process of its own. Run by itself:

    python full_disk.py FOLDER STORE BYTES [--ray]

STORE is a part of the run directory, and BYTES the room of the tmpfs that it lies on; other parts have room enough.
`all` is the whole run directory. STORE `limit` mounts nothing: no file may grow beyond BYTES then.
The run is a process of its own, which is timed. Afterwards the tmpfs is given room and the run is resumed in this
process; what came of both is printed as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from filling import CLONE_NEWNS, MS_PRIVATE_REC, NO_MOUNT

from esper import resume
from esper.archive.run_directory import RunDirectory
from esper.cli.main import main as esper
from esper.testing import tiny_config, tiny_task

MS_REMOUNT, ROOM = 32, "64m"
STORES = ("all", "checkpoints", "field_reports", "telemetry", "limit")
ON_ACTORS = STORES[:-1]
"""A limit of file sizes holds for Ray's own processes too, and Ray does not start under one of some kilobytes."""
SIZES = tuple(4096 * pages for pages in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, 65, 90, 120, 160))
"""Bytes; a tmpfs has no smaller one. The run needs about 700 KiB."""
TASK = """
import os, pathlib, time
from esper import errors
from esper.testing import tiny_task

HERE = pathlib.Path(__file__).parent
raised = errors.StoreWriteFailed.__init__

def noted(self, *arguments):
    (HERE / f"full-{time.monotonic_ns()}-{os.getpid()}").touch()  # this clock is the same in every process
    raised(self, *arguments)

errors.StoreWriteFailed.__init__ = noted

def task(): return tiny_task()
"""
"""Of any actor too: each loads the task from here."""
RUN = "--the-run-itself"


def mount(folder: Path, size: str, flags: int = 0) -> None:
    """Give `folder` so much room; exit with NO_MOUNT where a process may not mount."""
    system = ctypes.CDLL(None, use_errno=True)
    if system.mount(b"none", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()) != 0:
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        sys.exit(NO_MOUNT)


def own_mounts() -> None:
    """Mount for this process and its children alone."""
    system = ctypes.CDLL(None, use_errno=True)
    if system.unshare(CLONE_NEWNS) != 0 or system.mount(b"none", b"/", None, MS_PRIVATE_REC, None) != 0:
        sys.exit(NO_MOUNT)


def limit_files(most_bytes: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it; then a write beyond fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))


def mount_when_claimed(place: Path, most_bytes: int) -> None:
    """Mount the whole run directory now, or a part of it once the directory is claimed, which must be empty then."""
    if place.name == "run":
        place.mkdir()
        mount(place, str(most_bytes))
        return
    claim = RunDirectory.create

    def create(path: Path | None, now: datetime) -> RunDirectory:
        claimed = claim(path, now)
        place.mkdir()
        mount(place, str(most_bytes))
        return claimed

    RunDirectory.create = create  # type: ignore[method-assign]  # for this process alone


def words(folder: Path, run_dir: Path, on_ray: bool) -> list[str]:
    growth = tiny_config().growth.model_dump(exclude_unset=True)
    sets = [f"growth.{name}={json.dumps(value)}" for name, value in growth.items()]
    found = ["run", f"{folder}/t.py:task", "--run-dir", str(run_dir), "--json"]
    found += [word for one in sets for word in ("--set", one)]
    patient = ["--set", "ray.start_deadline_s=240"]  # a loaded machine is no full disk
    return [*found, *patient] if on_ray else [*found, "--in-process"]


def the_run(folder: Path, place: Path, most_bytes: int, on_ray: bool) -> None:
    """The command line of esper, on a place that is full sooner or later; leaves with its exit code."""
    if place.name == "limit":
        limit_files(most_bytes)
    else:
        mount_when_claimed(place, most_bytes)
    sys.argv = ["esper", *words(folder, folder / "run", on_ray)]
    esper()


def main(folder: Path, store: str) -> dict[str, Any]:
    run_dir = folder / "run"
    place = run_dir if store == "all" else run_dir / store
    if store != "limit":
        own_mounts()  # the run has them too
    (folder / "t.py").write_text(TASK)
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, *sys.argv, RUN], stdout=subprocess.PIPE, text=True, check=False)
    ended_s = time.monotonic()
    full_s = min((int(file.name.split("-")[1]) / 1e9 for file in folder.glob("full-*")), default=None)
    log = run_dir / "telemetry" / "severe-events.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    if store != "limit" and place.exists():
        mount(place, ROOM, MS_REMOUNT)
    began = (run_dir / "run.json").exists()
    resumed = resume(run_dir, tiny_task()).weights_sha256 if done.returncode == 3 and began else None
    last = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    error = {name: last[name] for name in ("error", "message", "next") if name in last}
    return error | {
        "code": done.returncode,
        "run_s": ended_s - began_s,
        "to_the_end_s": ended_s - full_s if full_s is not None else None,
        "began": began,
        "logged": [json.loads(line)["name"] for line in lines if line.endswith("}}")],
        "weights": last["weights_sha256"] if done.returncode == 0 else resumed,
    }


if __name__ == "__main__":
    here, store, size, ray = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), "--ray" in sys.argv
    if RUN in sys.argv:
        the_run(here, here / "run" if store == "all" else here / "run" / store, size, ray)
    else:
        print(json.dumps(main(here, store)))
