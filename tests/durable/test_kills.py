"""A process that appends is killed at any moment: what it acknowledged is there, and nothing else but one batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = 20


def kill(folder: Path, kills: int, timeout_s: float) -> dict[str, int]:
    script = Path(__file__).parent / "kit" / "killing.py"
    command = [sys.executable, "-I", "-S", str(script), str(ROOT), str(folder), str(kills), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    print(told)
    return told


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    told = kill(tmp_path, 200, 600)
    assert told["kills"] == 200
    assert told["acknowledged"] > 500
    assert told["before the first"] > 0  # some were killed while they opened the log


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_ten_thousand_killed_writers_lose_nothing_that_they_acknowledged(tmp_path: Path) -> None:
    assert kill(tmp_path, 10_000, 3500)["kills"] == 10_000
