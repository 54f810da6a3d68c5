"""What a directory says about its run, from its files alone, whatever became of the process that wrote them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from damage import flip

from esper import InProcess, resume, run
from esper.archive.inspection import inspect_run
from esper.archive.journal import Journal, RecordKind
from esper.archive.run_directory import checkpoints_folder, journal_file, run_file
from esper.errors import PolicyFailed
from esper.leyline.decisions import Decision, Pair
from esper.leyline.reports import FieldReport
from esper.leyline.signals import EmergencySignal, Level
from esper.leyline.state import RoundState
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.testing import EPOCH, tiny_config, tiny_task

GROWTH = tiny_config().growth


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that failed at fence 1. Not to be changed."""
    path = tmp_path_factory.mktemp("failed") / "run"
    with pytest.raises(PolicyFailed):
        run(tiny_task(), tiny_config(run__dir=str(path)), on=InProcess(policy=Failing()))
    return path


@pytest.fixture
def stopped(failed: Path, tmp_path: Path) -> Path:
    """The files of a run that failed at fence 1, to be changed."""
    return Path(shutil.copytree(failed, tmp_path / "run"))


class Failing(HeuristicPolicy):
    """The heuristic, but it fails at a fence."""

    def __init__(self, at: int = 1) -> None:
        self._at = at
        super().__init__(GROWTH.candidates, GROWTH.replicas, GROWTH.ramp_steps)

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        if state.fence == self._at:
            raise ValueError
        return super().decide(state, eligible, past)


def crash(path: Path, holder: str) -> None:
    """Make it look as if the process named in the lease had been at work until now: its last record is gone."""
    journal = journal_file(path, 1)
    journal.write_bytes(journal.read_bytes()[:-3])
    (path / "lease").write_text(holder)


def test_a_failed_run_is_failed(stopped: Path) -> None:
    found = inspect_run(stopped)
    assert (found["state"], found["fence"], found["steps"], found["damaged_records"]) == ("failed", 1, 20, 0)
    assert (found["damaged"], found["damages"], found["level"]) == (False, [], None)


def test_a_run_whose_process_lives_is_running(stopped: Path) -> None:
    crash(stopped, f"pid {os.getpid()} on {socket.gethostname()}\n")
    assert inspect_run(stopped)["state"] == "running"


def test_a_run_whose_process_is_gone_is_stopped_and_its_torn_record_is_counted(stopped: Path) -> None:
    crash(stopped, f"pid {2**22 + 1} on {socket.gethostname()}\n")  # beyond the largest pid that Linux gives
    found = inspect_run(stopped)
    assert (found["state"], found["damaged_records"], found["damaged"]) == ("stopped", 1, False)
    assert [damage["torn"] for damage in found["damages"]] == [True]


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


def test_the_level_is_the_one_of_the_last_fence(stopped: Path) -> None:
    fence = inspect_run(stopped)["fence"]
    with Journal(stopped, 1) as journal:
        for said, heard in ((Level.CONSERVATIVE, fence - 3), (Level.ELEVATED, fence), (Level.NOTICE, fence)):
            told = {"signal_id": said.name, "run_id": "r", "generation": 1, "origin": "operator", "reason": ""}
            sent = EmergencySignal.sealed(level=said, issued_at=EPOCH, **told)
            journal.write(RecordKind.SIGNAL, {**sent.model_dump(mode="json"), "fence": heard})
    assert inspect_run(stopped)["level"] == "ELEVATED"


# -- damage ------------------------------------------------------------------------------------------------------


def test_of_a_run_without_its_journal_nothing_is_made_up(stopped: Path) -> None:
    journal_file(stopped, 1).unlink()
    (stopped / "lease").unlink()
    found = inspect_run(stopped)
    assert found["damages"] == [{"file": "journal-1.log", "offset": None, "reason": "is missing", "torn": False}]
    assert (found["damaged"], found["state"], found["total_steps"]) == (True, "unknown", 320)
    assert [found[name] for name in ("fence", "steps", "train_loss", "level")] == [None] * 4


def test_how_a_run_stands_whose_newest_journal_is_lost_is_not_read_from_an_older_one(stopped: Path) -> None:
    resume(stopped, tiny_task(), on=InProcess(policy=Failing(at=99)))
    journal_file(stopped, 2).write_bytes(b"lost")
    (stopped / "lease").write_text(f"pid {os.getpid()} on {socket.gethostname()}\n")
    assert inspect_run(stopped)["state"] == "running"
    (stopped / "lease").unlink()
    assert inspect_run(stopped)["state"] == "unknown"


def test_a_run_whose_older_journal_is_lost_is_shown_as_the_newest_says(stopped: Path) -> None:
    resume(stopped, tiny_task(), on=InProcess(policy=Failing(at=99)))
    whole = inspect_run(stopped)
    journal_file(stopped, 1).write_bytes(b"lost")
    found = inspect_run(stopped)
    assert (whole["damaged"], found["damaged"]) == (False, True)
    assert [damage["file"] for damage in found["damages"]] == ["journal-1.log", "journal-2.log"]
    for name in ("state", "fence", "steps", "seeds", "train_loss", "generation"):
        assert found[name] == whole[name]


@pytest.mark.parametrize("text", [None, "{}", "\udce9"])
def test_a_run_whose_run_json_is_lost_is_shown_as_the_journal_says(stopped: Path, text: str | None) -> None:
    whole = inspect_run(stopped)
    run_file(stopped).unlink()
    if text is not None:
        run_file(stopped).write_bytes(text.encode(errors="surrogateescape"))
    found = inspect_run(stopped)
    assert ([damage["file"] for damage in found["damages"]], found["damaged"]) == (["run.json"], True)
    assert {name for name in whole if found[name] != whole[name]} == {"damages", "damaged"}


def test_of_a_directory_that_holds_only_checkpoints_nothing_is_made_up(stopped: Path) -> None:
    for entry in stopped.iterdir():
        if entry == checkpoints_folder(stopped):
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    found = inspect_run(stopped)
    assert [damage["file"] for damage in found["damages"]] == ["run.json", "journal-1.log"]
    assert [found[name] for name in ("fence", "total_steps", "task", "seed", "level")] == [None] * 5


def test_where_a_round_was_lost_of_a_run_that_told_of_no_other_no_fence_is_made_up(stopped: Path) -> None:
    flip(journal_file(stopped, 1), journal_file(stopped, 1).read_bytes().index(b'"train_loss"'))
    found = inspect_run(stopped)
    assert (found["state"], found["fence"], found["damaged_records"]) == ("failed", None, 1)
