"""A run that stopped goes on from its last fence to the same bits, or is refused with everything left as it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from esper.durable.files import DirectoryLease
from esper.durable.log import FramedLog
from esper.errors import ConfigError, Drained, EsperError, RestoreImpossible, RunDirectoryError, TaskError
from esper.history import read_past
from esper.journal import Kind, read
from esper.loop import resume, run
from esper.references import load_task
from esper.run_directory import checkpoints_folder, journal_file, run_file
from esper.summary import Result
from esper.testing import Bands, StopAt, TinyHost, tiny_config, tiny_task

TASK = "from esper.testing import tiny_task\n\n\ndef task():\n    return tiny_task()\n"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run that nobody disturbed."""
    return run(tiny_task(), tiny_config(run__dir=str(tmp_path_factory.mktemp("whole") / "run")))


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., Path]:
    """A run of a task file that was drained at a fence."""

    def stop(fence: int = 5, **overrides: Any) -> Path:
        (tmp_path / "mine.py").write_text(TASK)
        task, reference = load_task(f"{tmp_path}/mine.py:task")
        watch, path = StopAt(fence), tmp_path / "run"
        with pytest.raises(Drained) as drained:
            run(
                task,
                tiny_config(run__dir=str(path), **overrides),
                reference=reference,
                drain=watch.drain,
                progress=watch,
            )
        assert drained.value.fence == fence
        return path

    return stop


def files(path: Path) -> dict[str, bytes]:
    """Everything in a directory but the name of who holds it."""
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lease")
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def same(result: Result, whole: Result) -> None:
    """All that a run's course decides is equal; only what was measured with a clock may differ."""
    timed = {"run_dir", "trace_id", "steps_per_s", "fence_wait_s", "checkpoint_s", "wall_s", "resumes", "seeds", "task"}
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
    "fence", [0, 3, 6, 11, *(pytest.param(n, marks=pytest.mark.slow) for n in range(16) if n not in (0, 3, 6, 11))]
)
def test_a_run_stopped_at_a_fence_ends_as_one_that_was_not(
    stopped: Callable[..., Path], whole: Result, fence: int
) -> None:
    result = resume(stopped(fence))
    same(result, whole)
    assert result.resumes == 1


def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(stopped: Callable[..., Path], whole: Result) -> None:
    path = stopped(2)
    for fence in (3, 4, 9):
        watch = StopAt(fence)
        with pytest.raises(Drained):
            resume(path, drain=watch.drain, progress=watch)
    result = resume(path)
    same(result, whole)
    assert result.resumes == 4
    assert read_past(path).generation == 5


def test_checkpoints_between_rounds_change_no_bits(stopped: Callable[..., Path], whole: Result) -> None:
    path = stopped(7, checkpoint__every_rounds=5)
    assert [written.fence for written in read_past(path).commits] == [0, 5, 7]
    same(resume(path), whole)


def test_a_tournament_that_began_fences_before_the_stop_is_done_again(tmp_path: Path) -> None:
    slow = {"growth__due_rounds": 2}
    alone = run(tiny_task(), tiny_config(run__dir=str(tmp_path / "alone"), **slow))
    watch, path = StopAt(1), tmp_path / "run"
    with pytest.raises(Drained):
        run(tiny_task(), tiny_config(run__dir=str(path), **slow), drain=watch.drain, progress=watch)
    same(resume(path, tiny_task()), alone)


def test_a_run_that_has_ended_says_its_result_and_changes_nothing(stopped: Callable[..., Path]) -> None:
    path = stopped()
    result = resume(path)
    before = files(path)
    assert resume(path) == result.model_copy(update={"network": None})
    assert files(path) == before


def test_a_run_goes_on_for_more_epochs(stopped: Callable[..., Path]) -> None:
    path = stopped()
    first = resume(path)
    longer = resume(path, settings={"run.epochs": 12})
    assert longer.steps == first.steps * 12 // 10
    assert read_past(path).identity.config.run.epochs == 12
    assert longer.resumes == 2


def test_a_run_is_not_made_shorter(stopped: Callable[..., Path]) -> None:
    path = stopped()
    refused(path, ConfigError, r"run\.epochs = 2: .*lengthen it only", settings={"run.epochs": 2})


def test_what_a_damaged_journal_lost_does_not_keep_a_run_from_going_on_twice(
    stopped: Callable[..., Path], whole: Result
) -> None:
    path = stopped(5)
    begun = [entry for entry in read(journal_file(path, 1))[0] if entry.kind is Kind.CHECKPOINT_BEGUN][-1]
    data = bytearray(journal_file(path, 1).read_bytes())
    data[begun.offset + 40] ^= 1
    journal_file(path, 1).write_bytes(data)
    watch = StopAt(8)
    with pytest.raises(Drained):
        resume(path, drain=watch.drain, progress=watch)
    same(resume(path), whole)


def test_a_run_without_a_checkpoint_begins_again_at_fence_0(stopped: Callable[..., Path], whole: Result) -> None:
    path = stopped()
    journal = journal_file(path, 1)
    first = next(entry for entry in read(journal)[0] if entry.kind is Kind.CHECKPOINT_COMMITTED)
    journal.write_bytes(journal.read_bytes()[: first.offset])
    same(resume(path), whole)


# -- damage ------------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(
    stopped: Callable[..., Path], whole: Result
) -> None:
    path = stopped(5)
    last = checkpoints_folder(path) / read_past(path).commits[-1].file
    flip(last)
    same(resume(path), whole)
    assert os.listdir(checkpoints_folder(path) / "quarantine") == [last.name]
    taken_over = next(entry for entry in read(journal_file(path, 2))[0] if entry.kind is Kind.SUPERSEDED)
    assert taken_over.body["from_fence"] == 4


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again_in_silence(stopped: Callable[..., Path]) -> None:
    path = stopped(5)
    for file in checkpoints_folder(path).iterdir():
        flip(file)
    with pytest.raises(RestoreImpossible):
        resume(path)


def test_what_a_dead_generation_writes_after_it_was_succeeded_counts_for_nothing(stopped: Callable[..., Path]) -> None:
    path = stopped(5)
    resume(path)
    before, old = read_past(path), journal_file(path, 1)
    late = [entry for entry in read(old)[0] if entry.kind is Kind.CHECKPOINT_COMMITTED][-1]
    with FramedLog.open(old, epoch=1) as log:
        log.append(int(Kind.CHECKPOINT_COMMITTED), json.dumps(late.body | {"file": "late.pt"}).encode())
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


def test_a_changed_task_file_is_refused(stopped: Callable[..., Path], tmp_path: Path) -> None:
    path = stopped()
    (tmp_path / "mine.py").write_text(TASK + "# changed\n")
    refused(path, TaskError, r"its file is another than the run began with")


def test_keys_that_were_fixed_are_refused_by_name(stopped: Callable[..., Path]) -> None:
    path = stopped()
    settings = {"growth.margin": 0.5, "run.seed": 3}
    refused(path, ConfigError, r"run\.seed = 3: fixed since the run began: 0; so are growth\.margin", settings=settings)
    refused(path, ConfigError, r"no such key", settings={"run.sed": 3})


def test_a_task_that_was_built_in_place_must_be_given(tmp_path: Path) -> None:
    watch = StopAt(1)
    with pytest.raises(Drained):
        run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), drain=watch.drain, progress=watch)
    refused(tmp_path / "run", TaskError, r"run\.json does not say where it is")


class Unbiased(TinyHost):
    """The same slot in another network."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4, bias=False)


def test_another_task_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    watch = StopAt(2)
    with pytest.raises(Drained):
        run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")), drain=watch.drain, progress=watch)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.name != "lease")
    with pytest.raises(TaskError, match=r"task\.model .*another network"):
        resume(tmp_path / "run", tiny_task(model=Unbiased))
    with pytest.raises(TaskError, match=r"task\.train .*first batch is another"):
        resume(tmp_path / "run", tiny_task(train=Bands(1024, key=7)))
    assert before == sorted(
        (path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.name != "lease"
    )
