"""`esper signal` and `esper queue`, on runs in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from esper import InProcess, resume, run
from esper.archive.history import read_past
from esper.archive.inspection import inspect_run
from esper.archive.journal import RecordKind
from esper.archive.run_directory import telemetry_folder
from esper.cli.main import exit_code
from esper.emergency import emergency_service
from esper.emergency.requests import DropRequest, submit
from esper.emergency.unread_requests import STAYS
from esper.errors import EmergencyStop
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.leyline.state import RoundState
from esper.telemetry.events import LOG
from esper.testing import telling, tiny_config, tiny_task


class AtFence(Quiet):
    """Does something after fence 2, and collects what the run reports."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self._act, self.found_out = act, list[str]()

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        if state.fence == 2:
            self._act()

    def found(self, what: str) -> None:
        self.found_out.append(what)


@pytest.fixture
def esper(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs one command line with `--json`, checks its exit code, and returns the printed object."""

    def called(*words: object, code: int = 0) -> dict[str, Any]:
        assert exit_code([*map(str, words), "--json"]) == code
        printed: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return printed

    return called


def signal(run_dir: Path, level: str = "NOTICE") -> tuple[object, ...]:
    return "signal", run_dir, "--level", level, "--reason", "smoke", "--attribute", "room=5"


def short(run_dir: Path, progress: AtFence | None = None, **settings: Any) -> None:
    config = tiny_config(run__dir=str(run_dir), growth__enabled=False, **settings)
    run(tiny_task(), config, on=InProcess(), progress=progress or AtFence())


def test_a_signal_to_a_run_is_taken_and_journaled_with_its_fields(tmp_path: Path, esper: Any) -> None:
    run_dir, answers = tmp_path / "run", list[dict[str, Any]]()
    short(run_dir, AtFence(lambda: answers.append(esper(*signal(run_dir, "elevated")))))
    (heard,) = [entry.body for entry in read_past(run_dir).entries if entry.kind is RecordKind.SIGNAL]
    assert answers[0]["state"] == "taken"
    assert (heard["signal_id"], heard["fence"]) == (answers[0]["signal_id"], 3)
    assert (heard["reason"], heard["attributes"], heard["origin"]) == ("smoke", {"room": "5"}, "operator")


def test_a_halt_stops_the_run_and_a_resume_clears_it_and_goes_on(tmp_path: Path, esper: Any) -> None:
    run_dir, undisturbed, told = tmp_path / "run", tmp_path / "undisturbed", AtFence()
    short(undisturbed)
    with pytest.raises(EmergencyStop, check=telling(reason="smoke", step=40)):
        short(run_dir, AtFence(lambda: esper(*signal(run_dir, "HALT"))))
    assert inspect_run(run_dir)["level"] == "HALT"
    again = resume(run_dir, tiny_task(), on=InProcess(), progress=told)
    assert any(line.startswith("HALT cleared: ") for line in told.found_out)
    same = json.loads((undisturbed / "summary.json").read_text())["weights_sha256"]
    assert again.weights_sha256 == same


def test_a_signal_to_a_run_that_no_process_leads_waits_for_the_resume(tmp_path: Path, esper: Any) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as stop:
        short(run_dir, AtFence(_interrupt))
    assert f"esper.resume({str(run_dir)!r})" in stop.value.__notes__[-1]
    assert esper(*signal(run_dir, "HALT"))["state"] == "waiting"
    assert esper("queue", "list", run_dir)["inbox"] == 1
    with pytest.raises(EmergencyStop):
        resume(run_dir, tiny_task(), on=InProcess())
    assert esper("queue", "list", run_dir)["inbox"] == 0


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("finishes", [True, False])
def test_a_request_that_was_not_read_is_told_at_the_end_and_stays_for_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, esper: Any, finishes: bool
) -> None:
    monkeypatch.setattr(emergency_service, "LOOK_S", 1e6)  # the service looks into the inbox once, at the beginning
    run_dir, inbox = tmp_path / "run", tmp_path / "run" / "emergency" / "inbox"

    def act() -> None:
        (inbox / "no request").touch()
        esper(*signal(run_dir, "HALT"), "--wait", 0)
        submit(inbox.parent, DropRequest(ids=("a", "b"), why="old"))
        if not finishes:
            raise KeyboardInterrupt

    progress = AtFence(act)
    with nullcontext() if finishes else pytest.raises(KeyboardInterrupt):
        short(run_dir, progress)
    first, *others = [line for line in progress.found_out if STAYS in line]
    assert "(HALT: 'smoke')" in first
    assert [("drop 2" in line, "'no request'" in line) for line in others] == [(True, False), (False, True)]
    events = [json.loads(line) for line in (telemetry_folder(run_dir) / LOG).read_text().splitlines()]
    assert [one["fields"]["requests"] for one in events if one["name"] == "emergency_requests_unread"] == [3]
    assert len(list(inbox.iterdir())) == 3
    monkeypatch.undo()
    again = AtFence()
    if finishes:
        resume(run_dir, tiny_task(), on=InProcess(), progress=again)  # it only returns the result
        assert [line for line in again.found_out if STAYS in line] == [first, *others]
    else:
        with pytest.raises(EmergencyStop, check=telling(reason="smoke")):
            resume(run_dir, tiny_task(), on=InProcess(), progress=again)


def test_dead_letters_are_listed_retried_and_dropped_with_a_record(tmp_path: Path, esper: Any) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "missing" / "signals.jsonl"
    log.parent.mkdir()
    sink = {"name": "pager", "kind": "file", "path": str(log)}
    progress = AtFence(lambda: (log.parent.rmdir(), esper(*signal(run_dir))))
    short(run_dir, progress, emergency__sinks=[sink], emergency__attempts=1)
    assert "sink pager: 1 dead letters (see `esper queue list`)" in progress.found_out
    (held,) = esper("queue", "list", run_dir)["signals"]
    assert [(one["subscriber"], one["state"]) for one in held["deliveries"]] == [("pager", "dead")]
    esper("queue", "retry", run_dir)
    (held,) = esper("queue", "list", run_dir)["signals"]
    assert held["deliveries"][0]["state"] == "waiting"
    dropped = esper("queue", "drop", run_dir, held["signal_id"], "--reason", "old", "--yes")
    assert (dropped["state"], esper("queue", "list", run_dir)["signals"]) == ("taken", [])
    events = [json.loads(line) for line in (telemetry_folder(run_dir) / LOG).read_text().splitlines()]
    assert [one["fields"]["signal_id"] for one in events if one["name"] == "emergency_signal_dropped"] == [
        held["signal_id"]
    ]
    assert esper("queue", "drop", run_dir, "unknown", "--reason", "old", "--yes", code=3)["state"] == "refused"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("ended") / "run"
    short(run_dir)
    return run_dir


def test_a_signal_to_a_finished_run_is_refused_and_leaves_no_file(ended: Path, esper: Any) -> None:
    told = esper(*signal(ended, "HALT"), code=3)
    assert (told["state"], "finished" in told["why"]) == ("refused", True)
    assert esper("queue", "list", ended)["inbox"] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["signal", "RUN", "--level", "HALTT", "--reason", "x"], "--level = 'HALTT'"),
        (["signal", "RUN", "--level", "HALT", "--reason", "x" * 5000], "signal = 'xxx"),
        (["signal", "RUN", "--level", "HALT", "--reason", "x", "--attribute", "room"], "--attribute = 'room'"),
        (["queue", "drop", "RUN", "an-id", "--reason", "x"], "--yes"),
        (["queue", "retry", "RUN"], "ID"),
        (["queue", "list", "/no-run"], "RUN = '/no-run'"),
    ],
)
def test_wrong_input_is_one_line_and_changes_nothing(
    ended: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in ended.rglob("*")}
    assert exit_code([str(ended) if word == "RUN" else word for word in words]) == 2
    complaint = capsys.readouterr().err
    assert (named in complaint, complaint.count("\n")) == (True, 1)
    assert {path: path.stat().st_mtime_ns for path in ended.rglob("*")} == before
