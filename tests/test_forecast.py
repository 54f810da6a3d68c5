"""What `esper plan` says: plain values that follow from the dry run and agree with what a run then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esper.forecast import forecast
from esper.journal import Kind, read
from esper.loop import run
from esper.prospect import survey
from esper.run_directory import journal_file
from esper.testing import tiny_config, tiny_task


def plan(**overrides: Any) -> dict[str, Any]:
    return forecast(survey(tiny_task(), tiny_config(**overrides)))


def test_a_plan_is_json_and_names_slots_candidates_and_sizes() -> None:
    found = json.loads(json.dumps(plan()))
    assert (found["steps"], found["rounds"], found["batch_size"]) == (320, 16, 32)
    assert found["samples"] == {"train": 1024, "valid": 64, "test": 512, "pick": 256, "gate": 256}
    assert (found["host_parameters"], found["parameter_budget"]) == (108, 2160)
    assert found["germinates_at_fences"] == [1, 10]
    assert [slot["path"] for slot in found["slots"]] == ["body"]


def test_the_first_tournament_is_the_one_that_a_run_then_holds(tmp_path: Path) -> None:
    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), growth__candidates=2))
    entries, _ = read(journal_file(tmp_path / "run", 1))
    first = next(entry.body for entry in entries if entry.kind is Kind.DECISION)
    tried = {candidate["blueprint"] for candidate in plan(growth__candidates=2)["candidates"] if first_of(candidate)}
    assert tried == {pair["blueprint_id"] for pair in first["pairs"]}
    assert len(tried) == 2


def first_of(candidate: dict[str, Any]) -> bool:
    found: bool = candidate["in_first_tournament"]
    return found


def test_the_modelled_cost_is_near_what_the_first_tournament_then_costs(tmp_path: Path) -> None:
    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")))
    entries, _ = read(journal_file(tmp_path / "run", 1))
    spent = next(entry.body["flops"] for entry in entries if entry.kind is Kind.INCUBATION_ENDED)
    assert plan()["tournament_gflops"] * 1e9 == pytest.approx(spent, rel=0.35)


def test_a_candidate_over_the_budget_is_in_no_tournament() -> None:
    found = plan(growth__parameter_budget=2.0)["candidates"]
    assert {c["blueprint"]: c["in_first_tournament"] for c in found} == {"norm": True, "low_rank": True, "mlp": False}


def test_a_run_too_short_to_grow_says_so() -> None:
    found = plan(run__epochs=1)
    assert (found["germinates_at_fences"], found["twin_gflops"]) == (None, 0.0)


def test_the_twin_costs_the_hosts_steps_after_the_first_tournament_or_nothing() -> None:
    found = plan()
    assert found["twin_gflops"] == pytest.approx(found["host_gflops"] * (320 - 40) / 320)
    assert plan(growth__twin=False)["twin_gflops"] == 0.0
