"""What people do with the checkpoints of a run: list them, verify them, keep a copy. Also of a damaged run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from esper.cli import exit_code
from esper.errors import CheckpointCorrupt, Drained, RunDirectoryError
from esper.history import read_past
from esper.leyline.state import RoundState
from esper.loop import resume, run
from esper.progress import Quiet
from esper.run_directory import checkpoints_folder, journal_file
from esper.snapshots import take
from esper.summary import Tally
from esper.testing import StopAt, tiny_config, tiny_task


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    watch = StopAt(4)
    with pytest.raises(Drained):
        run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), drain=watch.drain, progress=watch)
    return tmp_path / "run"


def flip(run_dir: Path, fence: int) -> str:
    file = next(checkpoints_folder(run_dir).glob(f"fence-{fence}-*.pt"))
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    return file.name


def esper(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """Exit code, the JSON printed, what people read."""
    code = exit_code([*words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_the_checkpoints_of_a_run_are_listed_and_verified(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = esper(capsys, "checkpoint", "list", str(stopped))
    assert (code, [one["fence"] for one in told["checkpoints"]]) == (0, [0, 3, 4])
    code, told, _ = esper(capsys, "checkpoint", "verify", str(stopped))
    assert code == 0
    assert told["checkpoints"] == [
        {"file": f"fence-{fence}-g1.pt", "fence": fence, "ok": True, "reason": None} for fence in (0, 3, 4)
    ]


def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = flip(stopped, 3)
    before = sorted(os.listdir(checkpoints_folder(stopped)))
    code, told, _ = esper(capsys, "checkpoint", "verify", str(stopped))
    assert code == 1
    assert [one["file"] for one in told["checkpoints"] if not one["ok"]] == [name]
    assert "checksum" in next(one["reason"] for one in told["checkpoints"] if not one["ok"])
    assert sorted(os.listdir(checkpoints_folder(stopped))) == before


def test_a_damaged_journal_still_lets_the_checkpoints_be_seen(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(journal_file(stopped, 1).read_bytes())
    at = data.index(b'"fence":3')
    data[at] ^= 0xFF
    journal_file(stopped, 1).write_bytes(data)
    code, told, _ = esper(capsys, "checkpoint", "list", str(stopped))
    assert code == 0
    assert 4 in [one["fence"] for one in told["checkpoints"]]


@pytest.mark.parametrize("command", ["checkpoint list", "checkpoint verify", "snapshot", "prove", "resume"])
def test_a_directory_that_is_no_run_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, told, err = esper(capsys, *command.split(), str(tmp_path))
    assert (code, told) == (2, None)
    assert err.count("\n") == 1
    assert "no run is here" in err
    assert os.listdir(tmp_path) == []


def test_a_copy_is_a_run_that_goes_on_to_the_same_bits(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = esper(capsys, "snapshot", str(stopped))
    assert (code, told["fences"]) == (0, [0, 3, 4])
    assert told["snapshot"] == f"{stopped}-fence-4"
    one, other = resume(stopped, tiny_task()), resume(Path(told["snapshot"]), tiny_task())
    assert one.weights_sha256 == other.weights_sha256


def test_a_damaged_run_is_not_copied_as_if_it_were_sound(stopped: Path, tmp_path: Path) -> None:
    flip(stopped, 4)
    with pytest.raises(CheckpointCorrupt, match=r"fence-4-g1\.pt"):
        take(stopped, tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_copy_overwrites_nothing(stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(RunDirectoryError, match="it is there already"):
        take(stopped, tmp_path / "copy")
    assert os.listdir(tmp_path / "copy") == []


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
