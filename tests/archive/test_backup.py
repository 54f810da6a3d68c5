"""A copy of a run to keep: it is whole whatever the run does meanwhile, durable when it is said to be, or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import flip

from esper import resume, run
from esper.archive import backup
from esper.archive.backup import take
from esper.archive.history import Past, read_past
from esper.archive.run_directory import checkpoints_folder
from esper.cli.main import exit_code
from esper.durable.files import Disk
from esper.errors import CheckpointCorrupt, EmergencyStop, RunDirectoryError
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.tally import Tally
from esper.leyline.state import RoundState
from esper.testing import telling, tiny_config, tiny_task


@pytest.fixture
def stopped(stopped_runs: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped_runs(4), tmp_path / "run"))


def esper(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """Exit code, the JSON printed, what people read."""
    code = exit_code([*words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.parametrize("command", ["checkpoint list", "checkpoint verify", "snapshot", "prove", "resume"])
def test_a_directory_that_is_no_run_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, told, err = esper(capsys, *command.split(), str(tmp_path))
    assert (code, told["error"], told["field"]) == (2, "RunDirectoryError", "RUN")
    assert err.count("\n") == 1
    assert "no run is here" in err
    assert os.listdir(tmp_path) == []


def test_a_copy_is_a_run_that_goes_on_to_the_same_bits(
    stopped: Path, undisturbed: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, _ = esper(capsys, "snapshot", str(stopped))
    assert (code, told["fences"]) == (0, [0, 3, 4])
    assert told["snapshot"] == f"{stopped}-fence-4"
    assert resume(Path(told["snapshot"])).weights_sha256 == undisturbed.weights_sha256


def test_a_copy_has_the_requests_that_wait_in_the_inbox(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert esper(capsys, "signal", str(stopped), "--level", "HALT", "--reason", "smoke")[0] == 0
    os.mkfifo(stopped / "emergency" / "inbox" / "pipe")
    _, told, _ = esper(capsys, "snapshot", str(stopped))
    with pytest.raises(EmergencyStop):
        resume(Path(told["snapshot"]))


def test_a_damaged_run_is_not_copied_as_if_it_were_sound(stopped: Path, tmp_path: Path) -> None:
    flip(checkpoints_folder(stopped) / "fence-4-g1.pt")
    with pytest.raises(CheckpointCorrupt, check=telling(path="fence-4-g1.pt")):
        take(stopped, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_copy_overwrites_nothing(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(RunDirectoryError, check=telling(field="to", value=re.compile("/copy$"))):
        take(stopped, tmp_path / "copy")
    assert os.listdir(tmp_path / "copy") == []
    with pytest.raises(RunDirectoryError, check=telling(field="to", value=re.compile("/run/copy$"))):
        take(stopped, stopped / "copy")
    assert not (stopped / "copy").exists()


def test_the_copy_of_a_run_that_goes_on_is_whole(tmp_path: Path) -> None:
    """Retention drops checkpoints while they are copied."""
    copies: list[list[int]] = []

    class Copying(Quiet):
        def fence(self, state: RoundState, tally: Tally) -> None:
            del tally
            if state.fence >= 2:
                taken = take(tmp_path / "run", tmp_path / f"copy-{state.fence}")
                copies.append([written.fence for written in taken])

    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), progress=Copying())
    assert len(copies) == 15
    assert all(0 in fences and fences[-1] >= 1 for fences in copies)
    assert read_past(tmp_path / "copy-16").commits[0].fence == 0


@pytest.mark.slow
def test_a_run_that_drops_its_last_checkpoint_while_it_is_copied_is_copied_as_it_is_then(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Path(shutil.copytree(stopped, tmp_path / "later"))
    resume(later, tiny_task())

    def overtaken(path: Path) -> Past:
        past = read_past(path)
        if path != stopped and later.exists():  # the journals are copied, the checkpoints not yet
            shutil.rmtree(stopped)
            later.rename(stopped)
        return past

    monkeypatch.setattr(backup, "read_past", overtaken)
    taken = take(stopped, tmp_path / "copy")
    assert [written.fence for written in taken] == [0, 15, 16]
    assert taken == read_past(tmp_path / "copy").commits
    assert read_past(tmp_path / "copy").entries == read_past(stopped).entries
    assert resume(tmp_path / "copy", tiny_task()).weights_sha256 == resume(stopped, tiny_task()).weights_sha256


def test_every_name_of_a_copy_is_durable_when_it_is_done(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, set[str]] = {}
    sync = Disk.sync_folder

    def recording(disk: Disk, folder: Path) -> None:
        sync(disk, folder)
        synced[folder.stat().st_ino] = set(os.listdir(folder))

    monkeypatch.setattr(Disk, "sync_folder", recording)
    place = tmp_path / "new" / "below" / "copy"
    take(stopped, place)
    folders = [tmp_path, place.parent.parent, place.parent, place, checkpoints_folder(place), place / "field_reports"]
    assert {folder: synced[folder.stat().st_ino] for folder in folders} == {
        folder: set(os.listdir(folder)) for folder in folders
    }
