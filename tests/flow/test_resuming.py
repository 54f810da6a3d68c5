"""A run that stopped goes on from its last fence to the same bits, or is refused with everything left as it was."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip, flip_record, records
from incidents import DAMAGED_CHECKPOINT, the_trace_of
from stopping import stop, stop_again
from torch import nn

from esper import InProcess, resume, run
from esper.archive.history import read_past
from esper.archive.inspection import inspect_run
from esper.archive.journal import Journal, RecordKind
from esper.archive.resuming import Resumable, resumed
from esper.archive.run_directory import checkpoints_folder, journal_file, run_file, summary_file, telemetry_folder
from esper.config.joined import RunConfig
from esper.durable.files import DirectoryLease
from esper.durable.log import FramedLog
from esper.errors import (
    ConfigError,
    Drained,
    EsperError,
    FaultInjected,
    RunDirectoryError,
    StoreCorrupt,
    StoreWriteFailed,
    TaskError,
)
from esper.faults import Fault, FaultSpec
from esper.flow.progress import Quiet
from esper.flow.proof import prove
from esper.flow.result import Result
from esper.flow.stopping import Drain
from esper.ground.machine import cpu_type
from esper.ground.tensors import state_digest
from esper.leyline.signals import EmergencySignal, Level
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.telemetry.events import LOG
from esper.testing import EPOCH, Bands, ScriptedPolicy, StopAt, TinyHost, telling, tiny_config, tiny_task
from esper.user_code.task_reference import Reference, load_task

TASK = "from esper.testing import tiny_task\n\n\ndef task():\n    return tiny_task()\n"


@pytest.fixture
def stopped(stopped_runs: Callable[..., Path]) -> Callable[..., Path]:
    """A run of a task file that was drained at a fence."""
    return lambda fence=5, **overrides: stopped_runs(fence, **overrides)


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a directory but the name of who holds it, with the times of changes."""
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lease")
    return {str(file.relative_to(path)): (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


def same(result: Result, whole: Result) -> None:
    """All that a run's course decides is equal; only what was measured with a clock may differ."""
    timed = {"run_dir", "trace_id", "resumes", "seeds", "task"} | {
        name for name in Result.model_fields if name[-2:] == "_s"
    }
    one, other = result.as_json(), whole.as_json()
    assert {key: value for key, value in one.items() if key not in timed} == {
        key: value for key, value in other.items() if key not in timed
    }
    unnamed = [
        [seed | {"seed_id": "", "replica_of": bool(seed["replica_of"])} for seed in run["seeds"]]
        for run in (one, other)
    ]
    assert unnamed[0] == unnamed[1]


# -- the same bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fence",
    [
        6,
        *(pytest.param(fence, marks=pytest.mark.slow) for fence in (0, 15)),
        *(pytest.param(fence, marks=pytest.mark.torture) for fence in range(16) if fence not in (0, 6, 15)),
    ],
)
def test_a_run_stopped_at_a_fence_ends_as_one_that_was_not(
    stopped: Callable[..., Path], undisturbed: Result, fence: int
) -> None:
    result = resume(stopped(fence))
    same(result, undisturbed)
    assert result.resumes == 1


@pytest.mark.slow
def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(
    stopped: Callable[..., Path], undisturbed: Result
) -> None:
    path = stopped(2)
    for fence in (3, 4, 9):
        stop_again(fence, path)
    result = resume(path)
    same(result, undisturbed)
    assert result.resumes == 4
    assert read_past(path).generation == 5


@pytest.mark.slow
def test_a_tournament_that_began_fences_before_the_stop_is_done_again(tmp_path: Path) -> None:
    slow = {"growth__due_rounds": 2}
    alone = run(tiny_task(), tiny_config(run__dir=str(tmp_path / "alone"), **slow))
    stop(1, tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), **slow))
    result = resume(tmp_path / "run", tiny_task())
    same(result, alone)
    assert result.resumes == 1


def test_a_run_that_has_ended_says_its_result_and_changes_nothing(stopped: Callable[..., Path]) -> None:
    path = stopped()
    result = resume(path)
    before = files(path)
    again = resume(path)
    assert again.as_json() == result.as_json()
    assert state_digest(again.network.state_dict()) == result.weights_sha256
    assert files(path) == before


@pytest.mark.slow
def test_a_run_goes_on_for_more_epochs(stopped: Callable[..., Path]) -> None:
    path = stopped()
    first = resume(path)
    longer = resume(path, settings={"run.epochs": 12})
    assert longer.steps == first.steps * 12 // 10
    assert read_past(path).identity.config.run.epochs == 12
    assert longer.resumes == 2


@pytest.mark.slow
def test_a_run_is_not_made_shorter(stopped: Callable[..., Path]) -> None:
    path = stopped()
    refused(path, ConfigError, r"run\.epochs = 2: .*lengthen it only", settings={"run.epochs": 2})


@pytest.mark.slow
def test_what_a_damaged_journal_lost_does_not_keep_a_run_from_going_on_twice(
    stopped: Callable[..., Path], undisturbed: Result
) -> None:
    path = stopped(5)
    flip_record(journal_file(path, 1), RecordKind.CHECKPOINT_BEGUN)
    stop_again(8, path)
    result = resume(path)
    same(result, undisturbed)
    assert result.resumes == 2


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_again_at_fence_0(stopped: Callable[..., Path], undisturbed: Result) -> None:
    path = stopped()
    journal = journal_file(path, 1)
    os.truncate(journal, records(journal, RecordKind.CHECKPOINT_COMMITTED)[0].offset)
    result = resume(path)
    same(result, undisturbed)
    assert result.rollbacks == 0


# -- damage ------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(
    stopped: Callable[..., Path], undisturbed: Result
) -> None:
    path = stopped(5)
    last = checkpoints_folder(path) / read_past(path).commits[-1].file
    flip(last)
    same(resume(path), undisturbed)
    assert os.listdir(checkpoints_folder(path) / "quarantine") == [last.name]
    assert records(journal_file(path, 2), RecordKind.SUPERSEDED)[0].body["from_fence"] == 4
    the_trace_of(path, DAMAGED_CHECKPOINT)


@pytest.mark.slow
def test_what_a_dead_generation_writes_after_it_was_succeeded_counts_for_nothing(stopped: Callable[..., Path]) -> None:
    path = stopped(5)
    resume(path)
    before, old = read_past(path), journal_file(path, 1)
    late = records(old, RecordKind.CHECKPOINT_COMMITTED)[-1]
    with FramedLog.open(old, epoch=1) as log:
        log.append(int(RecordKind.CHECKPOINT_COMMITTED), json.dumps(late.body | {"file": "late.pt"}).encode())
    assert read_past(path).commits == before.commits
    assert read_past(path).entries == before.entries


# -- refusals ----------------------------------------------------------------------------------------------------


def refused(path: Path, error: type[EsperError], said: str, **how: Any) -> None:
    before = files(path)
    with pytest.raises(error, match=said):
        resume(path, **how)
    assert files(path) == before


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, RunDirectoryError, r"no run is here")
    assert os.listdir(tmp_path) == []


def test_a_run_in_use_is_refused_with_its_holder(stopped: Callable[..., Path]) -> None:
    path = stopped()
    with DirectoryLease(path):
        refused(path, RunDirectoryError, f"in use by pid {os.getpid()}")


def test_a_run_of_other_versions_is_refused_by_their_names(stopped: Callable[..., Path]) -> None:
    path = stopped()
    told = json.loads(run_file(path).read_text())
    told["versions"]["torch"] = "1.13.0"
    run_file(path).write_text(json.dumps(told))
    refused(path, RunDirectoryError, r"made with torch 1\.13\.0 \(here 2\.")


def test_a_changed_task_file_is_refused(stopped: Callable[..., Path]) -> None:
    path = stopped()
    (path.parent / "mine.py").write_text(TASK + "raise SystemExit('it was run')\n")
    refused(path, TaskError, r"its file has changed since the run began")


@pytest.mark.slow
def test_a_task_of_a_relative_path_is_found_where_the_run_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "mine.py").write_text(TASK)
    (tmp_path / "there" / "mine.py").write_text(TASK + "# another one of that name\n")
    path = tmp_path / "run"
    monkeypatch.chdir(tmp_path / "here")
    task, reference = load_task("mine.py:task")
    stop(3, task, tiny_config(run__dir=str(path)), reference=reference)
    monkeypatch.chdir(tmp_path / "there")
    assert resume(path).task == "mine.py:task"
    assert prove(path).divergence is None
    (tmp_path / "here" / "mine.py").unlink()
    refused(path, TaskError, r"its file has changed since the run began", settings={"run.epochs": 9})


def test_keys_that_were_fixed_are_refused_by_name(stopped: Callable[..., Path]) -> None:
    path = stopped()
    settings = {"growth.margin": 0.5, "run.seed": 3}
    refused(
        path,
        ConfigError,
        r"run\.seed = 3: it is fixed since the run began, as 0; so are growth\.margin",
        settings=settings,
    )
    refused(path, ConfigError, r"no such key", settings={"run.sed": 3})
    refused(path, ConfigError, r"run\.batch_size = 16: .*, as 32, which the task gave", settings={"run.batch_size": 16})
    refused(path, ConfigError, r"run\.clip_norm = 2\.0: .* not set \(.*no clipping\)", settings={"run.clip_norm": 2.0})
    refused(path, ConfigError, r"run\.batch_size = True", settings={"run.batch_size": True})
    with resumed(path, None, {"run.batch_size": 32}) as found:
        assert isinstance(found, Resumable)
        assert found.config.run.batch_size is None


def test_a_task_that_was_built_in_place_must_be_given(tmp_path: Path) -> None:
    stop(1, tiny_task(), tiny_config(run__dir=str(tmp_path / "run")))
    with pytest.raises(TaskError, match=r"run\.json has no reference to it"):
        resume(tmp_path / "run")


class Unbiased(TinyHost):
    """The same slot in another network."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4, bias=False)


def test_a_task_that_is_given_is_sent_to_actors_and_the_reference_of_the_run_is_not_read(
    stopped: Callable[..., Path],
) -> None:
    path, given = stopped(4), tiny_task()
    assert json.loads(run_file(path).read_text())["task"].endswith("mine.py:task")
    with resumed(path, given, {}) as found:
        assert isinstance(found, Resumable)
        assert (found.task, found.reference) == (given, Reference())


def test_another_task_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    stop(2, tiny_task(), tiny_config(run__dir=str(path)))
    for field, changes, names in (
        ("task.model", {"model": Unbiased}, ()),
        ("task.train", {"train": Bands(1024, key=7)}, ()),
        ("task.train", {"gate": Bands(256, key=8)}, ()),
        ("task.optimizer", {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}, ("SGD", "Adam")),
    ):
        before = files(path)
        with pytest.raises(TaskError, check=telling(*names, field=field, value="given from Python")):
            resume(path, tiny_task(**changes))
        assert files(path) == before


def broken(path: Path, point: str) -> RunConfig:
    """A run that raises where it first passes a fault point."""
    spec = FaultSpec(point=point, fault=Fault.RAISE)
    return tiny_config(run__dir=str(path)).model_copy(update={"faults": (spec,)})


@pytest.mark.slow
def test_a_resume_that_is_broken_off_anywhere_can_be_made_again(
    stopped: Callable[..., Path], undisturbed: Result, tmp_path: Path
) -> None:
    path, armed = stopped(5), tmp_path / "faults.toml"
    for point in ("conductor.open", "conductor.supersede", "conductor.resume", "conductor.restore", "conductor.start"):
        armed.write_text(f'[[faults]]\npoint = "{point}"\nfault = "raise"\n')
        for _ in range(2):
            with pytest.raises(FaultInjected, match=re.escape(point)):
                resume(path, broken=armed)
        assert point != "conductor.open" or read_past(path).resumes == 0  # none had begun
    result = resume(path)
    same(result, undisturbed)
    assert result.rollbacks == 0


@pytest.mark.slow
@pytest.mark.parametrize("has_journal", [True, False])
def test_a_run_broken_off_before_its_first_record_goes_on(
    tmp_path: Path, undisturbed: Result, has_journal: bool
) -> None:
    with pytest.raises(FaultInjected):
        run(tiny_task(), broken(tmp_path / "run", "conductor.open"))
    if not has_journal:
        journal_file(tmp_path / "run", 1).unlink()
    same(resume(tmp_path / "run", tiny_task()), undisturbed)


@pytest.mark.slow
def test_a_run_that_lost_its_journal_does_not_go_on(stopped: Callable[..., Path]) -> None:
    path = stopped()
    journal_file(path, 1).unlink()
    with pytest.raises(StoreCorrupt, match="journal-1"):
        resume(path)


@pytest.mark.slow
def test_what_killed_writers_left_is_removed_and_nothing_else(stopped: Callable[..., Path]) -> None:
    path = stopped(5)
    folder = checkpoints_folder(path)
    for name in ("fence-6-g1.pt", ".fence-6-g1.pt.0a1b2c.tmp", "mine.pt", "fence-x.pt", ".fence-notes"):
        (folder / name).write_bytes(b"x")
    (path / ".run.json.0a1b2c.tmp").write_bytes(b"x")
    stop_again(6, path)
    assert sorted(file.name for file in folder.iterdir()) == [
        ".fence-notes",
        "fence-0-g1.pt",
        "fence-5-g1.pt",
        "fence-6-g2.pt",
        "fence-x.pt",
        "mine.pt",
    ]
    assert list(path.glob("*.tmp")) == []


@pytest.mark.slow
def test_nothing_is_removed_where_a_journal_is_damaged(stopped: Callable[..., Path]) -> None:
    path = stopped(5)
    (checkpoints_folder(path) / "fence-6-g1.pt").write_bytes(b"x")
    flip_record(journal_file(path, 1), RecordKind.ROUND_ENDED, 3)
    resume(path)
    assert (checkpoints_folder(path) / "fence-6-g1.pt").exists()


@pytest.mark.slow
def test_a_run_that_has_ended_says_its_result_also_without_its_summary(stopped: Callable[..., Path]) -> None:
    path = stopped()
    result = resume(path)
    summary = summary_file(path).read_bytes()
    summary_file(path).unlink()
    assert resume(path).as_json() == result.as_json()
    assert summary_file(path).read_bytes() == summary


def test_that_a_run_failed_is_told_also_where_it_cannot_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Journal, kind: RecordKind, message: Any = None, /, **fields: object) -> None:
        if kind is RecordKind.RUN_FAILED:
            raise StoreWriteFailed("journal-1.log", "planted")
        write(self, kind, message, **fields)

    write = Journal.write
    monkeypatch.setattr(Journal, "write", refuse)
    config = broken(tmp_path / "run", "tolaria.step")
    with pytest.raises(FaultInjected) as caught:
        run(tiny_task(), config)
    assert any("while journaling that the run failed" in note and "planted" in note for note in caught.value.__notes__)


@pytest.mark.slow
def test_a_run_that_goes_on_on_another_processor_says_so(stopped: Callable[..., Path]) -> None:
    path = stopped(5)
    told: Any = json.loads(run_file(path).read_text())
    told["cpu"] = "an abacus"
    run_file(path).write_text(json.dumps(told))
    resume(path)
    told = [json.loads(line) for line in (telemetry_folder(path) / LOG).read_text().splitlines()]
    (event,) = [event for event in told if event["name"] == "other_cpu"]
    assert event["fields"] == {"began_on": "an abacus", "goes_on_on": cpu_type()}
    assert read_past(path).identity.cpu == cpu_type()


def signal(level: Level) -> EmergencySignal:
    return EmergencySignal.sealed(
        signal_id="a", run_id="r", generation=1, level=level, origin="test", reason="smoke", issued_at=EPOCH
    )


@pytest.mark.slow
def test_an_emergency_that_was_heard_after_the_last_checkpoint_still_holds(stopped: Callable[..., Path]) -> None:
    path = stopped(2)
    with Journal(path, 1) as journal:
        journal.write(RecordKind.SIGNAL, {**signal(Level.CONSERVATIVE).model_dump(mode="json"), "fence": 3})
    for fence in (3, 6):  # also of a second resume, whose own journal never heard it
        stop_again(fence, path)
    holds = [e.body for e in read_past(path).entries if e.kind is RecordKind.HOLD and e.body["fence"] > 2]
    level = [hold["fence"] for hold in holds if hold["detail"] == "emergency level"]
    assert level == [3, 4, 5]  # `emergency.calm_fences` is 3


def test_whoever_goes_on_after_a_halt_means_to(stopped: Callable[..., Path], undisturbed: Result) -> None:
    path = stopped(5)
    with Journal(path, 1) as journal:
        journal.write(RecordKind.SIGNAL, signal(Level.HALT))
    assert inspect_run(path)["level"] == "HALT"
    told = Found()
    assert resume(path, progress=told).weights_sha256 == undisturbed.weights_sha256
    assert told.whats[0] == "HALT cleared: signal a stopped the run (smoke)"
    assert inspect_run(path)["level"] is None


class Found(Quiet):
    """Collects what a run reports."""

    def __init__(self) -> None:
        self.whats: list[str] = []

    def found(self, what: str) -> None:
        self.whats.append(what)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "key", "value"),
    [("config", "growth.ramp_steps", 40), ("config", "run.seed", 5), ("", "host_crc32c", 1), ("", "run_id", "x")],
)
def test_a_run_json_that_says_otherwise_than_the_journal_is_refused_by_what_differs(
    stopped: Callable[..., Path], table: str, key: str, value: object
) -> None:
    path = stopped(2)
    told: Any = json.loads(run_file(path).read_text())
    place = told["config"] if table else told
    for name in key.split(".")[:-1]:
        place = place[name]
    place[key.split(".")[-1]] = value
    run_file(path).write_text(json.dumps(told))
    with pytest.raises(StoreCorrupt, match=rf"does not agree with the journal: .*{key} = {value!r}, in the journal "):
        resume(path)


def test_a_run_of_another_esper_whose_words_are_not_known_is_refused_by_its_version(
    stopped: Callable[..., Path],
) -> None:
    path = stopped(1)
    told: Any = json.loads(run_file(path).read_text())
    told["versions"]["esper-runtime"], told["new"] = "9.9", 1
    run_file(path).write_text(json.dumps(told))
    with pytest.raises(RunDirectoryError, check=telling("9.9", field="RUN", value=re.compile("/run$"))):
        resume(path)


@pytest.mark.parametrize("kind", [RecordKind.RUN_RESUMED, RecordKind.RUN_ENDED])
def test_a_journal_with_a_record_of_another_version_is_refused_by_what_it_lacks(
    stopped: Callable[..., Path], kind: RecordKind
) -> None:
    path = stopped(2)
    with Journal(path, 1) as journal:
        losses = {"start_test_loss": 2.0, "test_loss": 1.0, "twin_test_loss": None}  # enough for `esper inspect`
        journal.write(kind, fence=2, config={"checkpoint": {"keep": 2}}, **losses)
    refused(path, StoreCorrupt, rf"a record of another version: {kind.name}\.(run_id|run_dir): is missing")


class Heir(HeuristicPolicy):
    """A policy that inherits its version."""


OWN = InProcess(policy=Heir(candidates=2, replicas=2, ramp_steps=30))


@pytest.mark.parametrize(
    ("began", "on"),
    [(InProcess(), InProcess(policy=ScriptedPolicy())), (InProcess(), OWN), (OWN, InProcess())],
    ids=["another version", "an heir", "without the heir"],
)
def test_another_policy_does_not_resume_a_run(tmp_path: Path, began: InProcess, on: InProcess) -> None:
    watch, path = StopAt(1), tmp_path / "run"
    with pytest.raises(Drained):
        run(tiny_task(), tiny_config(run__dir=str(path)), on=began, drain=watch.drain, progress=watch)
    before = files(path)
    with pytest.raises(ConfigError, match=r", has decided for this run", check=telling(field="policy")):
        resume(path, tiny_task(), on=on)
    assert files(path) == before


def test_a_run_from_before_policies_were_named_is_resumed(stopped: Callable[..., Path]) -> None:
    path, watch = stopped(), StopAt(6)
    told = json.loads(run_file(path).read_text())
    del told["policy"]
    run_file(path).write_text(json.dumps(told))
    with pytest.raises(Drained):
        resume(path, drain=watch.drain, progress=watch)
    assert json.loads(run_file(path).read_text())["policy"] == "HeuristicPolicy, version heuristic-1"


@pytest.mark.parametrize("when", ["before", "as it starts", "after a damaged checkpoint"])
def test_a_resume_that_is_drained_before_it_goes_on_names_the_fence_at_which_it_stands(
    stopped: Callable[..., Path], when: str
) -> None:
    class AtTheStart(Quiet):
        def started(self, *_: object) -> None:
            if when != "before":
                drain.ask()

    path, drain = stopped(), Drain()
    *_, earlier, last = read_past(path).commits
    if when == "before":
        drain.ask()
    if when == "after a damaged checkpoint":
        flip(checkpoints_folder(path) / last.file)
        last = earlier
    with pytest.raises(Drained, match=f"fence {last.fence}$"):
        resume(path, drain=drain, progress=AtTheStart())
    failed = read_past(path).entries[-1]
    assert (failed.kind, failed.body["error"], failed.body["fence"]) == (RecordKind.RUN_FAILED, "Drained", last.fence)


@pytest.mark.slow
def test_a_drain_between_two_checkpoints_makes_one(tmp_path: Path, undisturbed: Result) -> None:
    class Late(Quiet):
        """Asks as soon as a round has begun, when its fence has not been passed."""

        def __init__(self) -> None:
            self.drain = Drain()

        def working(self, what: str) -> None:
            if what.startswith("round 4:"):
                self.drain.ask()

    watch, path = Late(), tmp_path / "run"
    config = tiny_config(run__dir=str(path), checkpoint__every_rounds=5)
    with pytest.raises(Drained, match="4"):
        run(tiny_task(), config, drain=watch.drain, progress=watch)
    assert read_past(path).commits[-1].fence == 4
    same(resume(path, tiny_task()), undisturbed)


@pytest.mark.slow
def test_a_longer_run_that_was_broken_off_as_it_began_is_not_told_the_shorter_result(
    stopped: Callable[..., Path], tmp_path: Path
) -> None:
    path, armed = stopped(5), tmp_path / "faults.toml"
    first = resume(path)
    armed.write_text('[[faults]]\npoint = "conductor.supersede"\nfault = "raise"\n')
    with pytest.raises(FaultInjected):
        resume(path, settings={"run.epochs": 12}, broken=armed)
    assert resume(path).steps == first.steps  # it had not been made longer yet
    armed.write_text('[[faults]]\npoint = "conductor.restore"\nfault = "raise"\n')
    with pytest.raises(FaultInjected):
        resume(path, settings={"run.epochs": 12}, broken=armed)
    assert not summary_file(path).exists()
    assert resume(path).steps == first.steps * 12 // 10


@pytest.mark.slow
@pytest.mark.parametrize("first", [3, pytest.param(6, marks=pytest.mark.torture)])
def test_a_longer_run_whose_last_round_was_short_has_the_same_bits_wherever_it_was_stopped(
    tmp_path: Path, first: int
) -> None:
    results = []
    for number, at in enumerate((first, 10)):
        path = tmp_path / str(number)
        stop(at, tiny_task(), tiny_config(run__dir=str(path), run__round_steps=30))
        if number == 0:
            stop_again(10, path, tiny_task())
        results.append(resume(path, tiny_task(), {"run.epochs": 12}))
    same(*results)
    assert results[0].resumes == results[1].resumes + 1
