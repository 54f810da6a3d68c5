"""One run on a disk of a given size, as a process of its own. Run by itself:

    python full_disk.py FOLDER STORE BYTES [--ray]

STORE is a part of the run directory, and BYTES the room of the tmpfs that it lies on; other parts have room enough.
`all` is the whole run directory. STORE `limit` mounts nothing: no file may grow beyond BYTES then.
Afterwards the tmpfs is given room and the run is resumed in this process; what came of both is printed as JSON.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
import time
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any

from filling import CLONE_NEWNS, MS_PRIVATE_REC, NO_MOUNT

from esper.cli import exit_code
from esper.loop import resume
from esper.run_directory import RunDirectory
from esper.testing import tiny_config, tiny_task

MS_REMOUNT, ROOM = 32, "64m"
STORES = ("all", "checkpoints", "field_reports", "telemetry", "limit")
TASK = "from esper.testing import tiny_task\ndef task(): return tiny_task()\n"


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
    (folder / "t.py").write_text(TASK)
    growth = tiny_config().growth.model_dump(exclude_unset=True)
    sets = [f"growth.{name}={json.dumps(value)}" for name, value in growth.items()]
    found = ["run", f"{folder}/t.py:task", "--run-dir", str(run_dir), "--json"]
    found += [word for one in sets for word in ("--set", one)]
    patient = ["--set", "ray.start_deadline_s=240"]  # a loaded machine is no full disk
    return [*found, *patient] if on_ray else [*found, "--in-process"]


def main(folder: Path, store: str, most_bytes: int, on_ray: bool) -> dict[str, Any]:
    run_dir = folder / "run"
    place = run_dir if store == "all" else run_dir / store
    if store == "limit":
        limit_files(most_bytes)
    else:
        own_mounts()
        mount_when_claimed(place, most_bytes)
    began_s = time.monotonic()
    told = io.StringIO()
    with redirect_stdout(told):
        code = exit_code(words(folder, run_dir, on_ray))
    took_s = time.monotonic() - began_s
    if store == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        mount(place, ROOM, MS_REMOUNT)
    resumed: str | None = None
    if code == 3 and (run_dir / "run.json").exists():
        resumed = resume(run_dir, tiny_task()).weights_sha256
    last = json.loads(told.getvalue().splitlines()[-1]) if told.getvalue() else {}
    error = {name: last[name] for name in ("error", "message", "next") if name in last}
    return error | {
        "code": code,
        "took_s": took_s,
        "began": (run_dir / "run.json").exists(),
        "weights": last["weights_sha256"] if code == 0 else resumed,
    }


if __name__ == "__main__":
    told = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), "--ray" in sys.argv)
    print(json.dumps(told))
