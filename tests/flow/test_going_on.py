"""What people are told as a run is gone on with, or cannot be: nothing of what was found on the way is a secret."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import flip, flip_record
from torch import Tensor

from esper import InProcess, run
from esper.archive.history import read_past
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import LEASE, checkpoints_folder, journal_file, journals, run_file, telemetry_folder
from esper.cli.main import exit_code
from esper.durable.log import scan
from esper.flow.result import Result
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.telemetry.events import LOG
from esper.testing import TinyHost, tiny_config
from esper.user_code.task_reference import load_task

TASK = "from esper.testing import tiny_task\n\n\ndef task():\n    return tiny_task()\n"

Esper = Callable[..., tuple[int, str, str]]


@pytest.fixture
def esper(capsys: pytest.CaptureFixture[str]) -> Esper:
    """Runs a command line; exit code, standard output, standard error."""

    def line(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return exit_code(list(map(str, words))), *capsys.readouterr()

    return line


@pytest.fixture
def stopped(stopped_runs: Callable[..., Path]) -> Callable[..., Path]:
    """A run of a task file that failed as it passed a fence."""
    return lambda fence=6, **overrides: stopped_runs(fence, failing=True, **overrides)


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (telemetry_folder(path) / LOG).read_text().splitlines()]


# -- a failure says what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every_rounds", "fences"), [(1, "0, 8, 9"), pytest.param(4, "0, 4, 8", marks=pytest.mark.slow)]
)
def test_a_failure_names_the_checkpoints_that_there_are(
    tmp_path: Path, esper: Esper, stopped: Callable[..., Path], every_rounds: int, fences: str
) -> None:
    path = stopped(checkpoint__every_rounds=every_rounds)
    (tmp_path / "faults.toml").write_text('[[faults]]\npoint = "conductor.fence"\nfault = "raise"\nround = 10\n')
    code, _, err = esper("resume", path, "--in-process", "--faults", tmp_path / "faults.toml")
    assert code == 3
    assert f"kept: journal, telemetry and checkpoints of fence {fences}\n" in err


def test_a_run_that_cannot_be_restored_says_where_its_checkpoints_went(
    esper: Esper, stopped: Callable[..., Path]
) -> None:
    path = stopped()
    for file in checkpoints_folder(path).glob("*.pt"):
        flip(file, 500)
    code, out, err = esper("resume", path, "--in-process", "--json")
    told = json.loads(out.splitlines()[-1])
    assert (code, told["error"], told["run_dir"]) == (3, "RestoreImpossible", str(path))
    assert "in quarantine, since they do not load: fence-0-g1.pt, fence-4-g1.pt, fence-5-g1.pt" in told["kept"]
    assert "kept: journal and telemetry" in err
    entries, errors = read(journal_file(path, 2))
    assert ([entry.kind for entry in entries], errors) == ([RecordKind.RUN_FAILED], [])
    assert json.loads(esper("inspect", path, "--json")[1])["state"] == "failed"


# -- what was found is told --------------------------------------------------------------------------------------


def test_a_checkpoint_that_does_not_load_is_named_where_the_run_goes_on(
    esper: Esper, stopped: Callable[..., Path]
) -> None:
    path = stopped()
    flip(checkpoints_folder(path) / "fence-5-g1.pt", 500)
    code, out, _ = esper("resume", path, "--in-process")
    assert code == 0
    assert "passed over: fence-5-g1.pt does not load" in out
    assert "continues from fence 4" in out


def test_damage_of_a_journal_is_told_to_people_and_as_a_severe_event(
    esper: Esper, stopped: Callable[..., Path]
) -> None:
    path = stopped()
    offset = flip_record(journal_file(path, 1), RecordKind.ROUND_ENDED, 3)
    code, out, _ = esper("resume", path, "--in-process")
    assert code == 0
    assert f"damaged: journal-1.log, byte {offset}: " in out
    (event,) = [event for event in events(path) if event["name"] == "journal_damaged"]
    assert (event["severity"], event["fields"]["offset"]) == ("ERROR", offset)


def test_a_commit_that_was_lost_at_the_end_shows_in_what_is_missing_then(
    esper: Esper, stopped: Callable[..., Path]
) -> None:
    path = stopped()
    frames = scan(journal_file(path, 1)).frames
    commit = [frame for frame in frames if frame.kind == RecordKind.CHECKPOINT_COMMITTED][-1]
    os.truncate(journal_file(path, 1), commit.end)
    flip(journal_file(path, 1), commit.offset + 40)
    assert not read_past(path).damaged  # it may have been an append that was cut short
    code, out, _ = esper("checkpoint", "verify", path)
    assert code == 1
    assert "fence-3-g1.pt: cannot be read" in out  # which was dropped because of what is lost now
    code, out, _ = esper("resume", path, "--in-process")
    assert code == 0
    assert "damaged: journal-1.log" in out
    assert "removed: fence-5-g1.pt, which was never committed" in out


def test_rot_in_the_last_word_of_a_journal_that_was_succeeded_is_damage(
    esper: Esper, stopped: Callable[..., Path]
) -> None:
    path = stopped()
    assert esper("resume", path, "--in-process")[0] == 0
    flip(journal_file(path, 1), scan(journal_file(path, 1)).frames[-1].offset + 40)
    assert esper("inspect", path)[0] == 1
    assert esper("checkpoint", "verify", path)[0] == 1
    code, _, err = esper("prove", path)
    assert (code, "journal-1.log" in err) == (3, True)


def test_a_run_that_has_ended_shows_what_it_came_to_when_it_is_resumed(
    esper: Esper, stopped: Callable[..., Path]
) -> None:
    path = stopped()
    assert esper("resume", path, "--in-process")[0] == 0
    before = sorted(file.name for file in journals(path).values())
    code, out, _ = esper("resume", path, "--in-process")
    assert code == 0
    assert "test loss" in out
    assert sorted(file.name for file in journals(path).values()) == before


# -- a copy, and a repetition ------------------------------------------------------------------------------------


def test_a_run_whose_journal_is_damaged_is_not_copied_as_if_it_were_sound(
    tmp_path: Path, esper: Esper, stopped: Callable[..., Path]
) -> None:
    path = stopped()
    flip_record(journal_file(path, 1), RecordKind.ROUND_ENDED, 3)
    code, _, err = esper("snapshot", path, "--to", tmp_path / "copy")
    assert (code, "journal-1.log: byte" in err, (tmp_path / "copy").exists()) == (3, True, False)


def test_a_copy_is_not_put_below_a_file(tmp_path: Path, esper: Esper, stopped: Callable[..., Path]) -> None:
    path, file = stopped(), tmp_path / "file"
    file.touch()
    code, _, err = esper("snapshot", path, "--to", file / "copy")
    assert (code, err.count("\n"), err.startswith("esper: to = ")) == (2, 1, True)


class Other(HeuristicPolicy):
    """Decides as the config's would, under another name."""

    version = "other-1"


def test_a_run_that_another_policy_decided_is_not_proved_to_be_another(tmp_path: Path, esper: Esper) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    path = tmp_path / "run"
    task, reference = load_task(f"{tmp_path}/mine.py:task")
    run(task, tiny_config(run__dir=str(path)), reference=reference, on=InProcess(policy=Other(2, 0, ramp_steps=30)))
    code, _, err = esper("prove", path)
    assert (code, "other-1" in err) == (2, True)


def test_a_repetition_that_is_asked_to_end_leaves_nothing_behind(
    tmp_path: Path, esper: Esper, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = stopped(), TinyHost.forward

    def terminated(host: TinyHost, x_BC: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return asked(host, x_BC)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(TinyHost, "forward", terminated)
    with pytest.raises(SystemExit) as left:
        esper("prove", path)
    assert (left.value.code, os.listdir(tmp_path / "tmp")) == (143, [])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# -- a directory from a stranger ---------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", [b"\xff\xfe", b"pid 99999999999999999999 on here\n", b""])
def test_a_strange_lease_hinders_nobody_who_looks(esper: Esper, stopped: Callable[..., Path], holder: bytes) -> None:
    path = stopped()
    (path / LEASE).write_bytes(holder)
    assert esper("inspect", path)[0] == 0


@pytest.mark.parametrize("name", ["journal-2.log", "checkpoints/fence-5-g1.pt", "run.json"])
def test_a_pipe_in_the_place_of_a_file_is_told_and_not_waited_for(
    esper: Esper, stopped: Callable[..., Path], name: str
) -> None:
    path = stopped()
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    for words in (["checkpoint", "verify"], ["prove"], ["snapshot"]):
        code, _, err = esper(*words, path)
        assert (code in (1, 2, 3), "Traceback" in err) == (True, False), words
    esper("inspect", path)
    code, out, err = esper("resume", path, "--in-process")
    assert code in (2, 3) or "passed over: fence-5-g1.pt" in out, err


def test_a_run_without_its_run_json_is_said_to_be_one(esper: Esper, stopped: Callable[..., Path]) -> None:
    path = stopped()
    run_file(path).unlink()
    for words in (["resume"], ["prove"], ["snapshot"]):
        code, _, err = esper(*words, path)
        assert (code, err.count("\n"), "run.json is missing" in err) == (2, 1, True), words


MISPLACED: list[tuple[str, Callable[[Path], object], str]] = [
    ("run.json", Path.mkdir, "is a folder"),
    ("run.json", lambda path: path.symlink_to(path.name), "leads nowhere"),
    ("run.json", lambda path: path.symlink_to("/dev/null"), "is a device"),
    ("journal-1.log", os.mkfifo, "is a named pipe"),
    ("summary.json", Path.mkdir, "is a folder"),
    ("checkpoints", Path.touch, "is a file"),
    ("field_reports", os.mkfifo, "is a named pipe"),
    ("telemetry", Path.touch, "is a file"),
]


def test_what_has_the_name_of_a_part_of_a_run_and_is_none_is_named(
    esper: Esper, undisturbed: Result, tmp_path: Path
) -> None:
    for place, (name, make, told) in enumerate(MISPLACED):
        path = tmp_path / str(place)
        shutil.copytree(undisturbed.run_dir, path)
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        (path / name).unlink(missing_ok=True)
        make(path / name)
        for words in (["resume", path, "--in-process"], ["snapshot", path], ["export", path], ["prove", path]):
            code, _, err = esper(*words)
            assert (code, err.count("\n"), f"{name} " in err, told in err) == (2, 1, True, True), (words, err)
        code, out, _ = esper("inspect", path)
        assert (code, out.count(f"{name}: "), told in out) == (1, 1, True), out


def test_a_summary_that_is_none_is_told_by_every_reader(undisturbed: Result, esper: Esper, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(undisturbed.run_dir, path)
    for content in ("", "junk", "[" * 100_000, "{}", "null"):
        (path / "summary.json").write_text(content)
        for words in (["inspect", path], ["resume", path, "--in-process"], ["export", path], ["snapshot", path]):
            code, out, err = esper(*words)
            assert (code in (1, 3), "summary.json: is no summary of a run; remove it" in out + err) == (True, True)
    (path / "summary.json").unlink()
    assert esper("inspect", path)[0] == 0
