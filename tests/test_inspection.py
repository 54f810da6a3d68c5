"""What a directory says about its run, from its files alone, whatever became of the process that wrote them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from esper.errors import PolicyFailed, RunDirectoryError, StoreCorrupt
from esper.inspection import inspect_run
from esper.loop import run
from esper.run_directory import journal_file, run_file
from esper.summary import load_identity
from esper.testing import ScriptedPolicy, tiny_config, tiny_task


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that failed at fence 1, as its files stand."""
    path = tmp_path / "run"
    with pytest.raises(PolicyFailed):
        run(tiny_task(), tiny_config(run__dir=str(path)), policy=ScriptedPolicy(ValueError()))
    return path


def crash(path: Path, holder: str) -> None:
    """Make it look as if the process named in the lease had been at work until now: its last record is gone."""
    journal = journal_file(path, 1)
    journal.write_bytes(journal.read_bytes()[:-3])
    (path / "lease").write_text(holder)


def test_a_failed_run_is_failed(stopped: Path) -> None:
    found = inspect_run(stopped)
    assert (found["state"], found["fence"], found["steps"], found["damaged_records"]) == ("failed", 1, 20, 0)


def test_a_run_whose_process_lives_is_running(stopped: Path) -> None:
    crash(stopped, f"pid {os.getpid()} on {socket.gethostname()}\n")
    assert inspect_run(stopped)["state"] == "running"


def test_a_run_whose_process_is_gone_is_stopped_and_its_torn_record_is_counted(stopped: Path) -> None:
    crash(stopped, f"pid {2**22 + 1} on {socket.gethostname()}\n")  # beyond the largest pid that Linux gives
    found = inspect_run(stopped)
    assert (found["state"], found["damaged_records"]) == ("stopped", 1)


def test_of_a_run_on_another_machine_no_more_is_said_than_that_it_is_open(stopped: Path) -> None:
    crash(stopped, "pid 1 on another-machine\n")
    assert inspect_run(stopped)["state"] == "open"


def test_a_run_without_a_lease_is_stopped(stopped: Path) -> None:
    crash(stopped, "")
    assert inspect_run(stopped)["state"] == "stopped"
    (stopped / "lease").unlink()
    assert inspect_run(stopped)["state"] == "stopped"


def test_looking_changes_nothing(stopped: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    inspect_run(stopped)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run is here"):
        inspect_run(tmp_path)


def test_a_foreign_run_json_is_refused_by_name(stopped: Path) -> None:
    run_file(stopped).write_text('{"run_id": 3}')
    with pytest.raises(StoreCorrupt, match=r"not a run\.json of this version"):
        load_identity(stopped)


def test_a_run_without_its_journal_is_corrupt(stopped: Path) -> None:
    journal_file(stopped, 1).unlink()
    with pytest.raises(StoreCorrupt, match=r"journal-1\.log"):
        inspect_run(stopped)
