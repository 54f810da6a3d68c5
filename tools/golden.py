"""Makes tests/data/golden-run, the run directory that every later version must restore or refuse.

The directory was made once, and must not be made again.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from esper import resume, run
from esper.errors import Drained
from esper.testing import StopAt, tiny_config
from esper.user_code.task_reference import load_task

ROOT = Path(__file__).parents[1]
PLACE = Path("tests/data/golden-run")
TASK = "tests/data/golden_task.py:tiny_task"
FENCE = 6


def main() -> None:
    """Make the golden run if there is none. Resume a copy of it, and record the digest of the final weights."""
    os.chdir(ROOT)  # so that the golden run contains no path of this machine
    if PLACE.exists():
        sys.exit(f"{PLACE} is there already; it is made once")
    task, reference = load_task(TASK)
    watch = StopAt(FENCE)
    try:
        run(task, tiny_config(run__dir=str(PLACE)), reference=reference, progress=watch, drain=watch.drain)
    except Drained:
        shutil.rmtree(PLACE / "telemetry", ignore_errors=True)
        (PLACE / "lease").unlink()
    copy = shutil.copytree(PLACE, PLACE.with_name("golden-run-copy"))
    try:
        PLACE.with_name("golden-run.weights_sha256").write_text(resume(copy).weights_sha256 + "\n")
    finally:
        shutil.rmtree(copy)


if __name__ == "__main__":
    main()
