"""`esper checkpoint`: what a run could go on from and whether it loads, also of a damaged run. It changes nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import flip, flip_record

from esper.archive.history import read_past
from esper.archive.inspection import missing
from esper.archive.journal import RecordKind
from esper.archive.run_directory import checkpoints_folder, journal_file, run_file
from esper.archive.verification import verdicts
from esper.cli.main import exit_code
from esper.durable.log import FramedLog


@pytest.fixture
def path(drained_twice: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drained_twice, tmp_path / "run"))


def esper(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Exit code and the JSON printed."""
    code = exit_code(["checkpoint", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


SOUND = [{"file": f"fence-{name}.pt", "fence": int(name[0]), "ok": True, "reason": None} for name in ("0-g1", "5-g2")]
SOUND += [{"file": "fence-6-g2.pt", "fence": 6, "ok": True, "reason": None}]


def test_the_checkpoints_of_a_run_are_listed_and_verified(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = esper(capsys, "list", str(path))
    assert (code, [one["fence"] for one in told["checkpoints"]], told["damages"]) == (0, [0, 5, 6], [])
    assert esper(capsys, "verify", str(path)) == (0, {"checkpoints": SOUND, "damages": []})


def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(checkpoints_folder(path) / "fence-5-g2.pt", 1000)
    before = sorted(os.listdir(checkpoints_folder(path)))
    code, told = esper(capsys, "verify", str(path))
    assert code == 1
    (damaged,) = [one for one in told["checkpoints"] if not one["ok"]]
    assert damaged["file"] == "fence-5-g2.pt"
    assert "checksum" in damaged["reason"]
    assert sorted(os.listdir(checkpoints_folder(path))) == before


def test_one_that_retention_drops_while_it_is_looked_at_is_no_damage(path: Path) -> None:
    commits = read_past(path).commits
    with FramedLog.open(journal_file(path, 2), epoch=2) as log:
        log.append(
            int(RecordKind.CHECKPOINT_COMMITTED), commits[-1].model_copy(update={"fence": 7}).model_dump_json().encode()
        )
    (checkpoints_folder(path) / "fence-5-g2.pt").unlink()
    assert verdicts(path, commits) == [SOUND[0], SOUND[2]]
    assert missing(path, commits) == []


@pytest.mark.parametrize("file", ["fence-0-g1.pt", "fence-5-g2.pt", "fence-6-g2.pt"])
def test_whichever_is_missing_is_told_and_a_copy_is_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    (checkpoints_folder(path) / file).unlink()
    code, told = esper(capsys, "verify", str(path))
    assert (code, [one["file"] for one in told["checkpoints"] if not one["ok"]]) == (1, [file])
    assert exit_code(["checkpoint", "list", str(path)]) == 1
    assert f"{file}: is missing\n" in capsys.readouterr().out
    (checkpoints_folder(path) / "quarantine").mkdir()
    (checkpoints_folder(path) / "quarantine" / "fence-4-g1.pt").touch()
    assert exit_code(["inspect", str(path)]) == 1
    assert "fence-4-g1.pt: did not load; it was moved to checkpoints/quarantine\n" in capsys.readouterr().out
    assert exit_code(["inspect", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["missing_checkpoints"] == [file]
    assert exit_code(["snapshot", str(path), "--to", str(tmp_path / "copy")]) == 3
    assert file in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


# -- damage elsewhere --------------------------------------------------------------------------------------------


def no_run_json(path: Path) -> str:
    run_file(path).unlink()
    return "run.json: is missing"


def foreign_run_json(path: Path) -> str:
    run_file(path).write_text("{}")
    return "run.json: not a run.json of this version"


def older_missing(path: Path) -> str:
    journal_file(path, 1).unlink()
    return "journal-1.log: is missing"


def older_header(path: Path) -> str:
    flip(journal_file(path, 1), 12)
    return "journal-1.log: the file header is damaged"


def older_record(path: Path) -> str:
    at = flip_record(journal_file(path, 1), RecordKind.ROUND_ENDED)
    return f"journal-1.log, byte {at}: the checksum of the payload is wrong"


@pytest.mark.parametrize("damage", [no_run_json, foreign_run_json, older_missing, older_header, older_record])
def test_damage_elsewhere_is_named_and_what_can_be_seen_is_shown(
    path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], str]
) -> None:
    said = damage(path)
    code, listed = esper(capsys, "list", str(path))
    assert (code, {5, 6} <= {one["fence"] for one in listed["checkpoints"]}) == (1, True)
    code, verified = esper(capsys, "verify", str(path))
    assert (code, listed["damages"]) == (1, verified["damages"])
    vouched_for = SOUND[1:] if damage in (older_missing, older_header) else SOUND
    assert [one for one in verified["checkpoints"] if one["ok"]] == vouched_for
    assert {one["file"] for one in verified["checkpoints"]} == {one["file"] for one in SOUND}
    for command in ("list", "verify"):
        assert exit_code(["checkpoint", command, str(path)]) == 1
        assert said in capsys.readouterr().out


def test_files_that_no_record_vouches_for_any_more_are_not_passed_over(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for generation in (1, 2):
        flip(journal_file(path, generation), 0)
    code, told = esper(capsys, "verify", str(path))
    assert (code, [damage["file"] for damage in told["damages"]]) == (1, ["journal-1.log", "journal-2.log"])
    assert [(one["file"], one["fence"], one["ok"]) for one in told["checkpoints"]] == [
        ("fence-0-g1.pt", None, False),
        ("fence-5-g2.pt", None, False),
        ("fence-6-g2.pt", None, False),
    ]
    assert {one["reason"] for one in told["checkpoints"]} == {"no valid, readable record describes it"}


def test_a_save_that_was_not_committed_yet_is_no_damage(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoints_folder(path) / "fence-7-g2.pt").write_bytes(b"written and not yet committed")
    assert esper(capsys, "verify", str(path)) == (0, {"checkpoints": SOUND, "damages": []})


def test_an_append_that_goes_on_is_shown_and_is_no_damage(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = journal_file(path, 2)
    journal.write_bytes(journal.read_bytes()[:-3])
    code, told = esper(capsys, "list", str(path))
    assert (code, [damage["torn"] for damage in told["damages"]]) == (0, [True])
