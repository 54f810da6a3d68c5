"""Each incident of a run in one process is one trace, with the error where it began. On actors: tests/actors."""

from __future__ import annotations

from pathlib import Path

import pytest
from incidents import GATE_FAILURE, GRAFT, POLICY_TIMEOUT, RECOVERY, the_trace_of

import esper
from esper.archive.journal import read
from esper.archive.recovery_record import Lost
from esper.archive.run_directory import journal_file
from esper.errors import PolicyDeadlineExceeded
from esper.faults import Fault, FaultSpec
from esper.flow.crew import OneProcess
from esper.flow.result import Result
from esper.testing import tiny_config, tiny_task
from esper.trace.paths import find


def test_a_healthy_round_with_a_graft_and_a_gate_that_fails_are_one_trace_each(undisturbed: Result) -> None:
    run_dir = Path(undisturbed.run_dir)
    the_trace_of(run_dir, GRAFT)
    the_trace_of(run_dir, GATE_FAILURE)
    assert find(run_dir, "*!", count=0), "a span of an undisturbed run failed"
    assert find(run_dir, "*[ended=false]", count=0), "a span of an undisturbed run never ended"


def test_a_policy_that_is_late_is_the_error_of_its_own_span(tmp_path: Path) -> None:
    with pytest.raises(PolicyDeadlineExceeded):
        esper.run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), policy__deadline_s=1e-6))
    trace_id = the_trace_of(tmp_path / "run", POLICY_TIMEOUT)
    assert read(journal_file(tmp_path / "run", 1))[0][-1].body["trace_id"] == trace_id


def test_a_death_its_recovery_and_the_first_good_round_are_one_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Result
) -> None:
    lost = Lost({"manager-0": "kasmina"}, None)
    monkeypatch.setattr(OneProcess, "lost", lambda _self, _error, _fence: lost)
    fault = FaultSpec(point="tolaria.step", fault=Fault.RAISE, step=150)
    config = tiny_config(run__dir=str(tmp_path / "run")).model_copy(update={"faults": (fault,)})
    result = esper.run(tiny_task(), config)
    assert result.weights_sha256 == undisturbed.weights_sha256
    the_trace_of(tmp_path / "run", (*RECOVERY, "esper round > esper step[role=tolaria]!FaultInjected"))
    assert find(tmp_path / "run", "esper recover", count=1)
