"""What a run says when it fails: always the first failure, with what can be done next. Later ones are notes on it."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esper import InProcess, errors, run
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import journal_file, reports_folder, telemetry_folder
from esper.cli.main import exit_code
from esper.cli.terminal import Terminal
from esper.errors import EsperError, PolicyFailed, StoreWriteFailed
from esper.flow.next_steps import STEPS, next_step
from esper.flow.tally import Tally
from esper.ground.closing import Closing, at_the_end, noted_on
from esper.leyline.state import RoundState
from esper.testing import ScriptedPolicy, tiny_config, tiny_task

TASK = "from esper.testing import tiny_task\ndef task(): return tiny_task()\n"


class Harming(Terminal):
    """A display that does harm to the run directory at fence 4."""

    harm: Callable[[Path], object] = staticmethod(shutil.rmtree)

    def fence(self, state: RoundState, tally: Tally) -> None:
        super().fence(state, tally)
        if state.fence == 4:
            assert self.path is not None
            self.harm(self.path)


HARMS: list[Callable[[Path], object]] = [
    shutil.rmtree,
    lambda run_dir: journal_file(run_dir, 1).unlink(),
    lambda run_dir: journal_file(run_dir, 1).write_bytes(b""),
    lambda run_dir: shutil.rmtree(reports_folder(run_dir)),
]


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_taken_from_under_a_run_ends_it_and_the_failure_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
) -> None:
    (tmp_path / "t.py").write_text(TASK)
    monkeypatch.setattr(Harming, "harm", staticmethod(harm))
    monkeypatch.setattr("esper.cli.run_command.Terminal", Harming)
    growing = tiny_config().growth.model_dump(exclude_unset=True)
    words = [word for name, value in growing.items() for word in ("--set", f"growth.{name}={json.dumps(value)}")]

    code = exit_code(
        ["run", f"{tmp_path}/t.py:task", "--run-dir", str(tmp_path / "run"), "--in-process", "--json", *words]
    )

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, told["error"], told["run_dir"]) == (3, "StoreWriteFailed", str(tmp_path / "run"))
    assert "esper resume" not in told["next"]


@pytest.mark.parametrize("part", ["Telemetry.start", "Checkpoints"])
def test_a_run_whose_first_files_cannot_be_written_names_its_directory_and_that_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    def is_full(*_: object, **__: object) -> None:
        raise StoreWriteFailed(part, "append failed") from OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "t.py").write_text(TASK)
    monkeypatch.setattr(f"esper.flow.runner.{part}", is_full)

    code = exit_code(["run", f"{tmp_path}/t.py:task", "--run-dir", str(tmp_path / "run"), "--in-process", "--json"])

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, told["error"], told["run_dir"]) == (3, "StoreWriteFailed", str(tmp_path / "run"))
    assert told["next"] == f"make room on the disk, then esper resume {tmp_path / 'run'}"
    assert told["kept"].startswith("run.json")


def test_a_policy_that_fails_where_no_severe_event_can_be_written_is_told_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"

    def fail(state: RoundState, eligible: object) -> None:
        del state, eligible
        shutil.rmtree(telemetry_folder(run_dir))
        raise KeyError("its own")

    with pytest.raises(PolicyFailed):
        run(tiny_task(), tiny_config(run__dir=str(run_dir)), on=InProcess(policy=ScriptedPolicy(fail)))
    lines = [line for line in capfd.readouterr().err.splitlines() if "a severe event is only here" in line]
    assert ["policy_failed" in line for line in lines] == [True]
    assert read(journal_file(run_dir, 1))[0][-1].kind is RecordKind.RUN_FAILED


# -- a failure after the first --------------------------------------------------------------------------------------


class Unclosable(Closing):
    def close(self) -> None:
        raise OSError(errno.EIO, "it does not close")


def closed_by_with(thing: Unclosable) -> None:
    with thing:
        raise KeyError("first")


def closed_at_the_end(thing: Unclosable) -> None:
    with at_the_end(thing.close, "closing it"):
        raise KeyError("first")


@pytest.mark.parametrize("fail", [closed_by_with, closed_at_the_end])
def test_what_fails_to_close_after_a_failure_is_a_note_on_it(fail: Callable[[Unclosable], None]) -> None:
    with pytest.raises(KeyError) as caught:
        fail(Unclosable())
    assert "it does not close" in caught.value.__notes__[0]


def test_what_fails_to_close_after_no_failure_is_raised() -> None:
    with pytest.raises(OSError, match="does not close"), Unclosable():
        pass
    with pytest.raises(OSError, match="does not close"), at_the_end(Unclosable().close, "closing it"):
        pass


def test_a_failure_that_comes_again_is_no_note_on_itself() -> None:
    first = KeyError("first")
    with noted_on(first, "asking again"):
        raise first
    assert not hasattr(first, "__notes__")


# -- what to do next ------------------------------------------------------------------------------------------------


def test_each_row_of_the_table_is_reached_and_no_class_falls_through() -> None:
    kinds = [kind for kind, _ in STEPS]
    shadowed = [kind for place, kind in enumerate(kinds) if any(issubclass(kind, one) for one in kinds[:place])]
    assert shadowed == []
    assert kinds[-1] is Exception


RESUMED = {"ActorLost", "TrainerRankLost", "ActorDoubtful", "ActorError", "CallDeadlineExceeded", "CannotBeWritten"}
RESUMED |= {
    "DrillImpossible",
    "Drained",
    "EmergencyQueueFull",
    "EmergencyUnavailable",
    "FaultInjected",
    "RollbackDeadlineExceeded",
    "SinkFailed",
    "SpanUnreadable",
}
"""Classes of error after which `esper resume` alone is what to do. A new class is in the table, or here on purpose."""


def test_each_class_of_error_has_a_row_of_its_own_or_is_one_that_a_resume_answers() -> None:
    rows = tuple(kind for kind, _ in STEPS if kind is not EsperError and issubclass(kind, EsperError))
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, EsperError)]
    without = {cls.__name__ for cls in classes if cls is not EsperError and not issubclass(cls, rows)}
    assert without == RESUMED


REPEATING = (
    errors.TaskError("task.model", 1, "mend"),
    errors.NoSeedCandidates("policy", "none"),
    errors.EvidenceMissing("G2", "losses"),
    errors.SeedBuildFailed("b", "s", "forward"),
    errors.PolicyFailed("p", 3),
    errors.LossDeviceMismatch("cpu", "cuda"),
    errors.DivergenceUnrecoverable(3, "loss", float("nan")),
    errors.ProcessStateChanged("torch.get_num_threads()", "1", "2", "tolaria"),
    errors.StateNotKept("task.model", "scale", 2, "make it a buffer"),
    errors.CommandRejected("stage_conflict", "c"),
    errors.RestoreImpossible("checkpoints", "none loads"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("the model gave up"),
)


@pytest.mark.parametrize("error", REPEATING, ids=lambda error: type(error).__name__)
def test_resume_is_no_advice_where_the_failure_would_come_again(error: Exception) -> None:
    assert "esper resume" not in next_step(error, Path("here"))


@pytest.mark.parametrize(
    ("error", "cause", "step"),
    [
        (errors.ActorLost("tolaria", "killed"), None, "esper resume here"),
        (errors.Drained(3), None, "esper resume here"),
        (errors.CommandRejected("stale", "c"), None, "set the machine's clock right, then esper resume here"),
        (StoreWriteFailed("f", "append"), errno.ENOSPC, "make room on the disk, then esper resume here"),
        (
            StoreWriteFailed("f", "append"),
            errno.EFBIG,
            "raise the limit of file sizes (ulimit -f), then esper resume here",
        ),
        (StoreWriteFailed("f", "append"), errno.EIO, "mend what the system refused, then esper resume here"),
        (OSError(errno.ENOSPC, "full"), None, "make room on the disk, then esper resume here"),
    ],
)
def test_what_to_do_next_follows_from_the_error(error: EsperError, cause: int | None, step: str) -> None:
    error.__cause__ = OSError(cause, "planted") if cause is not None else None
    assert next_step(error, Path("here")) == step
    assert next_step(error, None) == "mend the cause and run again"


def test_a_command_that_is_named_can_be_given_to_a_shell_as_it_stands() -> None:
    place = Path("my runs/lr=[0.1]")
    assert next_step(errors.Drained(3), place) == "esper resume 'my runs/lr=[0.1]'"
    assert next_step(errors.Drained(3), place, "a1").endswith(
        "; to see what happened: esper trace show 'my runs/lr=[0.1]' a1"
    )


def test_memory_that_holds_nothing_is_not_told_as_checkpoints_that_do_not_load() -> None:
    assert "checkpoint" not in str(errors.RestoreImpossible("memory", "no fence was passed yet"))
