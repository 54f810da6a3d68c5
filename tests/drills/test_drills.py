"""A drill passes where the system is right, and fails where it was broken on purpose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest
import typer

from drills import Drill, DrillContext, breaking, expect
from drills.catalogue import CATALOGUE
from drills.choosing import chosen
from drills.damaging import flip
from drills.drill import Finding
from drills.drill_commands import app, line, total
from drills.drill_runner import DrillRunner
from drills.observed import Observed
from drills.reporting import checked_report, write
from drills.signalling import SendsSignals
from drills.task_under_drill import TaskUnderDrill
from esper.archive.history import look_at, read_past
from esper.archive.journal import RecordKind
from esper.archive.run_directory import checkpoints_folder
from esper.errors import ConfigError
from esper.faults import Fault
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.leyline.state import RoundState
from esper.setup.survey import Survey
from esper.tamiyo.service import Tamiyo
from esper.telemetry.events import LOG
from esper.testing import telling, until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runner() -> Iterator[DrillRunner]:
    with DrillRunner(TaskUnderDrill.tiny(seed=0)) as runner:
        yield runner


def named(name: str) -> Drill:
    return next(one for one in CATALOGUE if one.name == name)


@pytest.mark.slow
def test_a_drill_passes_and_its_report_has_what_was_found(runner: DrillRunner, tmp_path: Path) -> None:
    outcome = runner.run_one(named("no-candidates"))
    assert (outcome.passed, outcome.why, outcome.leaks) == (True, "", ())
    for ending in ("json", "xml", "html"):
        write(tmp_path / f"report.{ending}", [outcome], 3, runner.compared_with)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["passed"], report["failed"], report["seed"]) == (1, 0, 3)
    (told,) = report["drills"]
    assert (told["name"], told["error"], told["same_bits"]) == ("no-candidates", "NoSeedCandidates", None)
    assert len(told["trace_id"]) == 32
    assert told["peak_memory_bytes"] > 50 << 20
    assert (report["undisturbed"]["steps"], len(report["undisturbed"]["weights_sha256"])) == (320, 64)
    empty = {name for name, value in told.items() if value is None}
    assert empty < set(told["not_measured"]) == {*empty, "phases_s"}
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite[1].get("name")) == ("1", "0", "no-candidates")
    page = (tmp_path / "report.html").read_text()
    assert "1 of 1 passed" in page
    assert "policy_no_candidates" in page


@pytest.mark.slow
def test_a_drill_fails_if_the_policys_silence_is_answered_by_a_pause(
    runner: DrillRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tamiyo, "_check_pairs", lambda *_: None)
    outcome = runner.run_one(named("no-candidates"))
    assert not outcome.passed
    assert "expected NoSeedCandidates" in outcome.why
    assert "FAILED" in line(outcome)
    assert total([outcome]) == "0 of 1 drills passed; failed: no-candidates"


def step_lost_and_checkpoint_damaged(drill: DrillContext) -> None:
    drill.run(breaking.fail("tolaria.step", step=130))
    flip(checkpoints_folder(drill.run_dir) / look_at(drill.run_dir).commits[-1].file)
    drill.resume()


@pytest.mark.slow
def test_the_steps_that_were_done_again_are_counted(runner: DrillRunner) -> None:
    """Round 6 ends at step 120, and is lost with its checkpoint. Ten steps of round 7 are lost with the error."""
    outcome = runner.run_one(broken(step_lost_and_checkpoint_damaged, expect.exit_codes(3, 0), expect.same_bits()))
    assert (outcome.why, outcome.steps_redone) == ("", 30)
    assert "steps_redone" not in outcome.not_measured

    outcome = runner.run_one(broken(lambda drill: [drill.run(breaking.fail("tolaria.step")), drill.resume()]))
    assert outcome.steps_redone is None
    assert "no record names the step" in outcome.not_measured["steps_redone"]


def broken(act: Any, *follows: Any) -> Drill:
    return Drill("broken", "A drill that must fail.", act, follows, place="in process")


LINE = "fault 1, raise at conductor.fence: fired 0 of 1 times"


class Told(Quiet):
    def __init__(self) -> None:
        self.found_lines: list[str] = []

    def found(self, message: str) -> None:
        self.found_lines.append(message)


def _missed(found: Observed) -> Finding:
    """The result, `summary.json` and the journal have the line."""
    result = found.attempts[0].result
    assert result is not None
    kept = json.loads((found.run_dir / "summary.json").read_text())["faults_missed"]
    journalled = found.entries(RecordKind.RUN_ENDED)[0].body["faults_missed"]
    told = [list(result.faults_missed or ()), kept, journalled]
    return Finding(LINE, str(told), told == [[LINE]] * 3)


@pytest.mark.slow
def test_a_fault_that_never_fires_is_told_and_fails_its_drill(runner: DrillRunner) -> None:
    late, told = breaking.fail("conductor.fence", round=3, passage=2), Told()
    outcome = runner.run_one(broken(lambda drill: drill.run(late, progress=told), expect.same_bits(), _missed))
    assert told.found_lines[-1] == LINE
    assert outcome.why == "expected faults fired 1 times; found 0 times"
    assert (outcome.same_bits, outcome.fault_fired) == (True, 0)


@pytest.mark.slow
def test_what_a_drill_leaves_behind_fails_it(runner: DrillRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drills.leaks.ENDING_S", 0.0)
    left: list[subprocess.Popen[bytes]] = []

    def act(drill: DrillContext) -> None:
        left.append(drill.start_command(breaking.spec("conductor.open", Fault.STOP), in_process=True))
        until(lambda: list(drill.folder.glob("run/faults-*.jsonl")) or left[0].poll() is not None)

    outcome = runner.run_one(broken(act))
    left[0].kill()
    left[0].wait()
    assert not outcome.passed
    assert f"process {left[0].pid}" in outcome.why


class Interrupts(Quiet):
    """Ctrl-C at the first fence."""

    def fence(self, state: RoundState, tally: Tally) -> None:
        del state, tally
        raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_ends_the_drills_and_is_no_outcome_of_a_run(runner: DrillRunner) -> None:
    with pytest.raises(KeyboardInterrupt):
        runner.run_one(broken(lambda drill: drill.run(progress=Interrupts())))


@pytest.mark.slow
def test_a_drill_that_cannot_be_made_has_failed_and_says_why(runner: DrillRunner) -> None:
    outcome = runner.run_one(broken(lambda drill: drill.undisturbed.first_entry("TERMINATED")))
    assert not outcome.passed
    assert "no seed of the undisturbed run becomes TERMINATED" in outcome.why


def test_the_page_of_drills_has_the_catalogue() -> None:
    page = (ROOT / "docs" / "drills.md").read_text()
    rows = [f"| {one.number} | `{one.name}` | {one.what} |" for one in CATALOGUE if not one.needs]
    table = page.partition("|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == rows


def test_the_catalogue_has_each_name_once_in_the_order_of_its_numbers() -> None:
    assert len({one.name for one in CATALOGUE}) == len(CATALOGUE)
    assert [one.number for one in CATALOGUE] == sorted(one.number for one in CATALOGUE)


def test_a_drill_that_waits_for_a_part_of_esper_fails_by_name_and_is_no_part_of_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert typer.main.get_command(app).main(["run", "rank-hangs", "--json"], standalone_mode=False) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "needs several ranks" in told["drills"][0]["why"]
    assert not [one for one in chosen([], every=True, file=None) if one.needs]


@pytest.mark.parametrize(
    ("names", "given", "names_told"),
    [
        (["policy-fial"], {}, ["policy-fails"]),
        ([], {}, ["esper drill list"]),
        (["3"], {"every": True}, ["--all"]),
        ([], {"file": "nowhere.py:drill"}, ["path/to/file.py"]),
        ([], {"file": str(ROOT / "examples/own_drill.py:act")}, ["drills.Drill"]),
    ],
)
def test_a_wrong_choice_is_refused(names: list[str], given: dict[str, Any], names_told: list[str]) -> None:
    with pytest.raises(ConfigError, check=telling(*names_told)):
        chosen(names, **{"every": False, "file": None, **given})


def test_a_number_means_all_its_drills_each_once() -> None:
    chosen_ones = [one.name for one in chosen(["2", "policy-late"], every=False, file=None)]
    assert chosen_ones == ["policy-late", "policy-late-in-c"]


def test_a_drill_of_ones_own_is_found() -> None:
    (drill,) = chosen([], every=False, file=str(ROOT / "examples/own_drill.py:drill"))
    assert drill.name == "my-trainer-dies"


@pytest.mark.parametrize("file", ["report.txt", "nowhere/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_any_drill(file: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, check=telling("--report")):
        checked_report(tmp_path / file)


@pytest.mark.slow
def test_the_command_line_has_the_drills() -> None:
    words = [sys.executable, "-m", "esper", "drill", "list", "--json"]
    listed = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)["drills"]
    assert [row["name"] for row in listed] == [one.name for one in CATALOGUE]


@pytest.mark.slow
def test_drills_of_ones_own_task_keep_the_values_of_its_config(tmp_path: Path) -> None:
    config, kept = tmp_path / "my.toml", tmp_path / "kept"
    config.write_text("[run]\nseed = 5\n[policy]\ndeadline_s = 33.0\n[growth]\nmin_samples = 24\n")
    words = ["drill", "run", "disk-full-checkpoint", "checkpoint-flipped", "--config", str(config), "--json"]
    words += ["--task", f"{ROOT / 'tests/zoo/tasks_rows.py'}:regression", "--keep", str(kept)]
    ended = subprocess.run([sys.executable, "-m", "esper", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert (report["seed"], [one["same_bits"] for one in report["drills"]]) == (5, [True, True])
    for one in report["drills"]:
        used = read_past(kept / one["name"] / "run").identity.config
        assert (used.run.seed, used.policy.deadline_s, used.checkpoint.full_rollback_s) == (5, 33.0, 600.0)


def test_a_refusal_by_a_gate_that_the_undisturbed_run_lacks_is_an_event_that_nobody_expected() -> None:
    def failed(blueprint: str) -> dict[str, Any]:
        fields = {"seed_id": "any", "slot": "body", "blueprint": blueprint, "gate": "G2", "reasons": ["no_improvement"]}
        return {"name": "gate_failure", "fields": fields}

    known = frozenset({("body", "mlp", "G2", ("no_improvement",))})
    found: Any = SimpleNamespace(
        events=[failed("mlp"), failed("mlp"), failed("norm")],
        context=SimpleNamespace(undisturbed=SimpleNamespace(refusals=known)),
    )
    assert expect.events()(found) == Finding("severe events none", "gate_failure 1", False)
    assert expect.events(gate_failure=1)(found).met
    assert expect.events(diverges=True)(found).met


@pytest.mark.slow
def test_ctrl_c_ends_a_driver_that_its_drill_has_stopped(runner: DrillRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = list[subprocess.Popen[bytes]](), DrillContext.start_command

    def starts(drill: DrillContext, *faults: Any, **how: Any) -> subprocess.Popen[bytes]:
        started.append(start(drill, *faults, **how))
        return started[0]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DrillContext, "start_command", starts)
    monkeypatch.setattr("esper.resume", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run_one(named("driver-paused"))
    code = started[0].poll()
    if code is None:
        os.killpg(started[0].pid, signal.SIGKILL)
    assert code == -signal.SIGKILL


def test_the_fence_of_the_signals_lasts_until_a_delivery_was_retried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, waits = tmp_path / "telemetry" / LOG, list[float]()
    log.parent.mkdir()

    def sleep(seconds: float) -> None:
        log.write_text(json.dumps({"name": "emergency_signal_retried", "fields": {}}) + "\n")
        waits.append(seconds)

    monkeypatch.setattr("drills.signalling.time.sleep", sleep)
    sends = SendsSignals(3, 0, retried=1)
    sends.started(cast(Survey, None), tmp_path)
    sends.fence(cast(RoundState, SimpleNamespace(fence=3)), cast(Tally, None))
    assert len(waits) == 1
