"""Severe events that only a broken part causes come out of a whole run too: each is in the log with its trace id."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from esper import run
from esper.emergency.requests import INBOX
from esper.errors import DivergenceUnrecoverable
from esper.flow.operator import Outcome, send
from esper.flow.tally import Tally
from esper.leyline.signals import Level
from esper.leyline.state import RoundState
from esper.testing import StopAt, tiny_config, tiny_task, until
from esper.trace.event_log import SevereEvent, severe_events
from esper.trace.paths import find
from esper.trace.span_files import Skipped


class AtFence(StopAt):
    """Does something when a fence has been passed."""

    def __init__(self, fence: int, act: Callable[[], object]) -> None:
        super().__init__(99)
        self._at, self._act = fence, act

    def fence(self, state: RoundState, tally: Tally) -> None:
        super().fence(state, tally)
        if state.fence == self._at:
            self._act()


def events_of(run_dir: Path, name: str) -> list[SevereEvent]:
    return [one for one in severe_events(run_dir, Skipped()) if one.name == name]


def test_a_loss_that_is_not_a_number_ends_the_run_with_the_event_on_its_step(tmp_path: Path) -> None:
    factor = torch.ones(())

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(output, target) * factor

    task = tiny_task(loss=loss, sample_loss=lambda *told: cross_entropy(*told, reduction="none"))
    watch = AtFence(2, lambda: factor.fill_(torch.nan))
    with pytest.raises(DivergenceUnrecoverable):
        run(task, tiny_config(run__dir=str(tmp_path / "run"), growth__enabled=False), progress=watch)
    (event,) = events_of(tmp_path / "run", "guard_tripped")
    step = "esper round[role=conductor]!DivergenceUnrecoverable > esper step[role=tolaria]@guard_tripped"
    assert find(tmp_path / "run", step).trace_ids == [event.trace_id]


def test_a_sink_that_fails_and_an_inbox_that_is_removed_are_told_by_the_run(tmp_path: Path) -> None:
    run_dir, gone = tmp_path / "run", tmp_path / "gone"
    gone.mkdir()
    sink = {"name": "disk", "kind": "file", "path": str(gone / "signals.jsonl")}
    config = tiny_config(
        run__dir=str(run_dir), growth__enabled=False, emergency__sinks=[sink], emergency__attempts=2,
        emergency__first_retry_s=0.01,
    )  # fmt: skip

    def break_both() -> None:
        shutil.rmtree(gone)
        gone.touch()
        shutil.rmtree(run_dir / "emergency" / INBOX)
        until(lambda: events_of(run_dir, "emergency_inbox_unreadable"), every_s=0.01)
        assert send(run_dir, Level.NOTICE, "look", {}, wait_s=600)[1].outcome is Outcome.TAKEN
        until(lambda: events_of(run_dir, "emergency_signal_dead_lettered"), every_s=0.01)

    run(tiny_task(), config, progress=AtFence(1, break_both))
    (retried,) = events_of(run_dir, "emergency_signal_retried")
    (given_up,) = events_of(run_dir, "emergency_signal_dead_lettered")
    assert retried.fields["signal_id"] == given_up.fields["signal_id"]
    assert (retried.fields["attempts"], given_up.fields["attempts"]) == (1, 2)
    assert retried.trace_id != given_up.trace_id  # each attempt is a trace
    for event in (retried, given_up):
        attempt = f"send esper.emergency[role=emergency]!SinkFailed@{event.name}"
        assert find(run_dir, attempt).trace_ids == [event.trace_id]
