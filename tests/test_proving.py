"""`esper prove`: a run that took its course is the same again; one that did not is told where it went astray."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from esper.cli import exit_code
from esper.errors import ConfigError, Drained, TaskError
from esper.history import Past, read_past
from esper.journal import Kind
from esper.loop import resume, run
from esper.progress import Quiet
from esper.proving import Divergence, compare, prove
from esper.references import load_task
from esper.testing import StopAt, tiny_config, tiny_task

TASK = "from esper.testing import tiny_task\n\ntask = tiny_task()\n"


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(TASK)
    task, reference = load_task(f"{tmp_path}/mine.py:task")
    watch = StopAt(4)
    config = tiny_config(run__dir=str(tmp_path / "run"))
    with pytest.raises(Drained):
        run(task, config, reference=reference, drain=watch.drain, progress=watch)
    return tmp_path / "run"


def test_a_run_that_was_stopped_and_went_on_is_the_same_at_every_step_and_fence(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(stopped)
    assert exit_code(["prove", str(stopped), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"same": True, "steps": 320, "fences": 17, "divergence": None}


def test_a_run_is_compared_as_far_as_it_got(stopped: Path) -> None:
    proof = prove(stopped, Quiet())
    assert (proof.steps, proof.fences, proof.divergence) == (80, 5, None)


def altered(past: Past, kind: Kind, fence: int, change: Callable[[dict[str, object]], object]) -> Past:
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
    other = altered(past, Kind.ROUND_ENDED, 3, lambda body: body["losses"].__setitem__(7, 0.5))  # type: ignore[attr-defined]
    found = compare(other, past).divergence
    assert found is not None
    assert (found.what, found.fence, found.step, found.recorded) == ("loss", 3, 47, 0.5)


def test_the_last_bit_of_a_loss_counts(stopped: Path) -> None:
    past = read_past(stopped)
    losses = next(e.body["losses"] for e in past.entries if e.kind is Kind.ROUND_ENDED and e.body["fence"] == 2)
    nearly = float.fromhex(losses[0].hex().replace("0x1.", "0x1.")) * (1 + 2**-52)
    other = altered(past, Kind.ROUND_ENDED, 2, lambda body: body.update(losses=[nearly, *losses[1:]]))
    assert compare(past, other).divergence == Divergence("loss", 2, 20, losses[0], nearly)


def test_weights_that_went_astray_between_two_steps_are_named_by_their_fence(stopped: Path) -> None:
    past = read_past(stopped)
    other = altered(past, Kind.CHECKPOINT_COMMITTED, 2, lambda body: body.update(weights_crc32c=1))
    found = compare(past, other).divergence
    assert found is not None
    assert (found.what, found.fence, found.step, found.repeated) == ("weights", 2, None, 1)


def test_a_run_that_was_given_another_length_is_refused(stopped: Path) -> None:
    resume(stopped, settings={"run.epochs": 12})
    with pytest.raises(ConfigError, match="another length on its way"):
        prove(stopped, Quiet())


def test_a_changed_task_is_refused(stopped: Path) -> None:
    (stopped.parent / "mine.py").write_text(TASK + "# changed\n")
    with pytest.raises(TaskError, match="its file is another"):
        prove(stopped, Quiet())


def test_a_run_that_nobody_can_find_the_task_of_is_refused(tmp_path: Path) -> None:
    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False))
    with pytest.raises(TaskError, match=r"run\.json does not say where it is"):
        prove(tmp_path / "run", Quiet())
