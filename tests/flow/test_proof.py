"""`esper prove`: a run that took its course is the same again; one that did not is told where it went astray."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from damage import flip, flip_record, records
from stopping import stop_again

from esper import resume, run
from esper.archive import identity
from esper.archive.history import Past, read_past
from esper.archive.journal import Journal, RecordKind
from esper.archive.run_directory import checkpoints_folder, journal_file, run_file
from esper.cli.main import exit_code
from esper.errors import (
    CheckpointCorrupt,
    Drained,
    RunDirectoryError,
    StoreCorrupt,
    TaskError,
)
from esper.flow import proof as proving
from esper.flow.places import InProcess
from esper.flow.progress import Quiet
from esper.flow.proof import Divergence, Proof, compare, prove
from esper.flow.tally import Tally
from esper.leyline.decisions import Decision, Pair
from esper.leyline.reports import FieldReport
from esper.leyline.signals import EmergencySignal, Level
from esper.leyline.state import RoundState
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.testing import EPOCH, StopAt, telling, tiny_config, tiny_task
from esper.user_code.task_reference import load_task

TASK = "from esper.testing import tiny_task\n\ntask = tiny_task()\n"


class Watching(Quiet):
    """Remembers the last fence that was passed."""

    last = -1

    def fence(self, state: RoundState, tally: Tally) -> None:
        del tally
        self.last = state.fence


@pytest.fixture
def stop(stopped_runs: Callable[..., Path]) -> Callable[..., Path]:
    """A run of a task file that was drained at a fence."""
    return lambda fence=4, **overrides: stopped_runs(fence, **overrides)


@pytest.fixture
def stopped(stop: Callable[..., Path]) -> Path:
    return stop()


@pytest.mark.slow
def test_a_run_that_was_stopped_and_went_on_is_the_same_at_every_step_and_fence(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(stopped)
    assert exit_code(["prove", str(stopped), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    same = {"same": True, "steps": 320, "fences": 17, "total_steps": 320, "divergence": None, "network": None}
    assert told == same


# -- how far -----------------------------------------------------------------------------------------------------


def test_a_run_is_repeated_and_compared_as_far_as_it_got(stopped: Path) -> None:
    proof = prove(stopped, progress=(watch := Watching()))
    assert (proof.steps, proof.fences, proof.total_steps, proof.divergence) == (80, 5, 320, None)
    assert watch.last == 4


@pytest.mark.slow
def test_a_run_that_failed_is_repeated_up_to_the_last_fence_that_it_passed(stop: Callable[..., Path]) -> None:
    proof = prove(stop(5, failing=True), progress=(watch := Watching()))
    assert (proof.steps, proof.fences, proof.divergence, watch.last) == (100, 5, None, 5)


@pytest.mark.slow
def test_a_run_whose_last_append_was_cut_short_is_compared_up_to_there(stop: Callable[..., Path]) -> None:
    path = stop(4, checkpoint__keep=9)
    journal = journal_file(path, 1)
    os.truncate(journal, records(journal, RecordKind.ROUND_ENDED, 3)[0].offset + 50)
    proof = prove(path, progress=(watch := Watching()))
    assert (proof.steps, proof.divergence, watch.last) == (40, None, 2)


@pytest.mark.slow
def test_weights_are_compared_also_at_a_fence_that_has_a_checkpoint_only_because_the_run_stopped_there(
    stop: Callable[..., Path],
) -> None:
    path = stop(4, checkpoint__every_rounds=3)
    stop_again(5, path)
    proof = prove(path)
    assert (proof.steps, proof.fences, proof.divergence) == (100, 4, None)


def test_a_run_without_a_finished_round_is_refused(
    stop: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = stop(0)
    with pytest.raises(RunDirectoryError, check=telling("round", field="RUN", value=re.compile("/run$"))):
        prove(path, progress=(watch := Watching()))
    assert watch.last == -1
    assert exit_code(["prove", str(path)]) == 2
    assert "nothing to compare" in capsys.readouterr().err


# -- divergence --------------------------------------------------------------------------------------------------


def altered(past: Past, kind: RecordKind, fence: int, change: Callable[[dict[str, object]], object]) -> Past:
    """A past in which one record says something else."""
    entries = []
    for entry in past.entries:
        if entry.kind is kind and entry.body["fence"] == fence:
            body = json.loads(json.dumps(entry.body))
            change(body)
            entry = replace(entry, body=body)
        entries.append(entry)
    return replace(past, entries=tuple(entries))


def test_the_first_step_that_went_astray_is_named_with_both_losses(stopped: Path) -> None:
    past = read_past(stopped)
    other = altered(past, RecordKind.ROUND_ENDED, 3, lambda body: body["losses"].__setitem__(7, 0.5))  # type: ignore[attr-defined]
    found = compare(other, past).divergence
    assert found is not None
    assert (found.what, found.fence, found.step, found.recorded) == ("loss", 3, 47, 0.5)


def test_the_last_bit_of_a_loss_counts(stopped: Path) -> None:
    past = read_past(stopped)
    losses = next(e.body["losses"] for e in past.entries if e.kind is RecordKind.ROUND_ENDED and e.body["fence"] == 2)
    nearly = float.fromhex(losses[0].hex().replace("0x1.", "0x1.")) * (1 + 2**-52)
    other = altered(past, RecordKind.ROUND_ENDED, 2, lambda body: body.update(losses=[nearly, *losses[1:]]))
    assert compare(past, other).divergence == Divergence("loss", 2, 20, losses[0], nearly)


def test_weights_that_went_astray_between_two_steps_are_named_by_their_fence(stopped: Path) -> None:
    past = read_past(stopped)
    other = altered(past, RecordKind.CHECKPOINT_COMMITTED, 2, lambda body: body.update(weights_crc32c=1))
    found = compare(past, other).divergence
    assert found is not None
    assert (found.what, found.fence, found.step, found.repeated) == ("weights", 2, None, 1)


# -- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RecordKind.ROUND_ENDED, RecordKind.RUN_STARTED, RecordKind.HOLD])
def test_a_damaged_journal_is_damage_and_no_divergence(
    stopped: Path, capsys: pytest.CaptureFixture[str], kind: RecordKind
) -> None:
    at = flip_record(journal_file(stopped, 1), kind)
    with pytest.raises(StoreCorrupt, match=rf"journal-1\.log: byte {at}: the checksum of the payload is wrong"):
        prove(stopped, progress=(watch := Watching()))
    assert watch.last == -1
    assert exit_code(["prove", str(stopped)]) == 3
    assert "StoreCorrupt" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_damage_and_no_sameness(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(checkpoints_folder(stopped) / "fence-3-g1.pt", 1000)
    with pytest.raises(CheckpointCorrupt, check=telling(path="fence-3-g1.pt")):
        prove(stopped, progress=(watch := Watching()))
    assert watch.last == -1
    assert exit_code(["prove", str(stopped)]) == 3
    assert "CheckpointCorrupt" in capsys.readouterr().err


# -- refusals ----------------------------------------------------------------------------------------------------


def test_a_run_of_other_versions_is_refused_before_anything_runs(stopped: Path) -> None:
    told = json.loads(run_file(stopped).read_text())
    told["versions"]["torch"] = "1.13.0"
    run_file(stopped).write_text(json.dumps(told))
    with pytest.raises(RunDirectoryError, check=telling("torch 1.13.0", "2.", field="RUN", value=re.compile("/run$"))):
        prove(stopped, progress=(watch := Watching()))
    assert watch.last == -1


@pytest.mark.slow
def test_a_run_that_was_given_another_length_is_refused(stopped: Path) -> None:
    resume(stopped, settings={"run.epochs": 12})
    with pytest.raises(RunDirectoryError, match="a resume changed its length"):
        prove(stopped)


def test_a_changed_task_is_refused(stopped: Path) -> None:
    (stopped.parent / "mine.py").write_text(TASK + "# changed\n")
    with pytest.raises(TaskError, check=telling(field="task", value=re.compile("/mine\\.py:task$"))):
        prove(stopped)


def test_a_run_that_nobody_can_find_the_task_of_is_refused(tmp_path: Path) -> None:
    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False))
    with pytest.raises(TaskError, check=telling("run.json", field="task", value="")):
        prove(tmp_path / "run")


def test_what_cannot_be_repeated_here_is_refused_and_not_told_as_another_course(stopped: Path) -> None:
    past = read_past(stopped)
    body = next(entry.body for entry in past.entries if entry.kind is RecordKind.RUN_STARTED)
    with Journal(stopped, past.generation) as journal:
        journal.write(RecordKind.RUN_STARTED, **(body | {"cpu": "an abacus"}))
    with pytest.raises(RunDirectoryError, match="it ran on an abacus"):
        prove(stopped)


# -- signals and policies ----------------------------------------------------------------------------------------


def hear(path: Path, fence: int) -> None:
    """Add a signal to the journal of a run, as if the run had read it at this fence."""
    signal = EmergencySignal.sealed(
        signal_id="a",
        run_id="r",
        generation=1,
        level=Level.CONSERVATIVE,
        origin="test",
        reason="smoke",
        issued_at=EPOCH,
    )
    with Journal(path, 1) as journal:
        journal.write(RecordKind.SIGNAL, {**signal.model_dump(mode="json"), "fence": fence})


@pytest.mark.slow
def test_a_run_whose_growth_was_stopped_by_a_signal_is_repeated_with_that_signal(stop: Callable[..., Path]) -> None:
    path = stop(0)
    hear(path, 1)
    stop_again(6, path)
    holds = [e.body for e in read_past(path).entries if e.kind is RecordKind.HOLD]
    assert [hold["fence"] for hold in holds if hold["detail"] == "emergency level"] == [1, 2, 3]
    assert prove(path).divergence is None
    path = stop(4)
    hear(path, 0)  # this run never obeyed it, and germinated there
    assert prove(path).divergence is not None


class Returning(HeuristicPolicy):
    """Goes back once, from fence 5 to the first checkpoint, and tries fewer candidates than the config."""

    version = "returning-1"

    def __init__(self) -> None:
        super().__init__(2, 1, tiny_config().growth.ramp_steps)

    def decide(self, state: RoundState, eligible: Sequence[Pair], past: Sequence[FieldReport]) -> Decision:
        decision = super().decide(state, eligible, past)
        if state.fence != 5 or state.rollbacks:
            return decision
        return decision.model_copy(update={"pairs": (), "hold": None, "go_back_to": state.checkpoints[0]})


class Another(Returning):
    pass


@pytest.mark.slow
def test_a_run_with_a_policy_of_the_users_is_repeated_with_that_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    watch = StopAt(6)
    config = tiny_config(run__dir=str(path), checkpoint__every_rounds=2)
    with pytest.raises(Drained):
        run(tiny_task(), config, on=InProcess(policy=Returning()), drain=watch.drain, progress=watch)
    for policy in (None, Another()):
        with pytest.raises(RunDirectoryError, check=telling("Returning", "esper.prove(run_dir, policy=...)")):
            prove(path, tiny_task(), policy=policy)
    assert exit_code(["prove", str(path)]) == 2
    assert "esper.prove(run_dir, policy=...)" in capsys.readouterr().err
    proof = prove(path, tiny_task(), policy=Returning())
    assert (proof.steps, proof.divergence) == (120, None)
    assert proof.fences >= 3


SCALED = """
import os
from esper.testing import TinyHost, tiny_task

class Scaled(TinyHost):
    def forward(self, x):
        return super().forward(x * float(os.environ["SCALE"]))

def task(): return tiny_task(model=Scaled, epochs=1)
"""


@pytest.mark.slow
def test_another_order_of_sets_is_no_proof_that_a_run_went_astray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    monkeypatch.setenv("SCALE", "1")
    task, reference = load_task(f"{tmp_path}/scaled.py:task")
    run(task, tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False), reference=reference)
    astray = Proof(0, 0, 32, Divergence("loss", 1, 0, 1.0, 2.0))
    monkeypatch.setattr(identity, "text_hash", lambda: 5)
    assert prove(tmp_path / "run").divergence is None
    with monkeypatch.context() as later:
        later.setattr(proving, "compare", lambda *_, **__: astray)
        with pytest.raises(RunDirectoryError, match=r"differs at fence 1, and a set of texts has another"):
            prove(tmp_path / "run")
    monkeypatch.setenv("SCALE", "1.5")
    with pytest.raises(RunDirectoryError, match="after the same first steps its weights differ here, and a set"):
        prove(tmp_path / "run", progress=(watch := Watching()))
    assert watch.last == -1
