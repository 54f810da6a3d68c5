"""What `esper plan` says: plain values that follow from the dry run and agree with what a run then does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from growing import THREE
from rich.console import Console

from esper import run
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import journal_file
from esper.cli import plan_view
from esper.cli.terminal import heading
from esper.ground.clock import SystemClock
from esper.kasmina.incubation.incubator import PROBE_BATCHES
from esper.leyline.decisions import Decision, Hold
from esper.leyline.stages import Stage
from esper.leyline.state import RoundState, SeedState
from esper.setup.assembly import RunKey, make_kasmina
from esper.setup.candidates import first_state, first_tournament
from esper.setup.forecast import (
    Timings,
    Work,
    busiest,
    forecast,
    foretell_waits,
    measure,
    probes_s,
    replica_s,
    tournament_s,
)
from esper.setup.survey import survey_of
from esper.setup.total_cost import run_flops
from esper.setup.tournament_cost import heats_of, largest_flops, tournament_flops
from esper.tamiyo.cost_limit import CostLimit
from esper.testing import TinyHost, tiny_config, tiny_task


def plan(**overrides: Any) -> dict[str, Any]:
    return forecast(survey_of(tiny_task(), tiny_config(**overrides)))


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
    first = next(entry.body for entry in entries if entry.kind is RecordKind.DECISION)
    tried = {
        candidate["blueprint"]
        for candidate in plan(growth__candidates=2)["candidates"]
        if candidate["in_first_tournament"]
    }
    assert tried == {pair["blueprint_id"] for pair in first["pairs"]}
    assert len(tried) == 2


def test_the_modelled_cost_is_near_what_the_first_tournament_then_costs(tmp_path: Path) -> None:
    run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run")))
    entries, _ = read(journal_file(tmp_path / "run", 1))
    spent = next(entry.body["flops"] for entry in entries if entry.kind is RecordKind.INCUBATION_ENDED)
    assert plan()["tournament_gflops"] * 1e9 == pytest.approx(spent, rel=0.35)


class Deep(torch.nn.Module):
    """[B, 8] -> [B, 4], with four slots of kind NC: 12 candidates or more."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_BC = layer(x_BC)
        scores: torch.Tensor = self.head(x_BC)
        return scores


RUNGS = {
    "growth__rungs": (10, 20, 40),
    "growth__rung_samples": (64, 128, 256),
    "growth__entry": "adopt",
    "growth__tests": "tournaments",
    "growth__max_tournaments": 1,
    "growth__twin": False,
    "growth__candidates": 12,
    "growth__replicas": 1,
    "risk__max_cost_ratio": 500.0,
}


@pytest.mark.slow
@pytest.mark.parametrize(("placebos", "sizes"), [(0, [(12, 12), (6, 6), (3, 3)]), (3, [(12, 12), (6, 9), (3, 7)])])
def test_the_flops_that_a_plan_foretells_are_those_that_a_run_with_rungs_counts(
    tmp_path: Path, placebos: int, sizes: list[tuple[int, int]]
) -> None:
    task, settings = tiny_task(model=Deep, slots=["layers.*"]), {**RUNGS, "growth__placebos": placebos}
    config = tiny_config(run__dir=str(tmp_path / "run"), **settings)
    survey = survey_of(task, config)
    assert [(heat.least, heat.most) for heat in heats_of(survey, 12)] == sizes
    assert [(heat.steps, heat.samples) for heat in heats_of(survey, 12)] == [(10, 64), (10, 128), (20, 256)]
    tried = first_tournament(survey)
    assert not isinstance(tried, Hold)
    least, most = tournament_flops(survey, tried)
    assert (most == least) == (placebos == 0)
    assert largest_flops(survey, tried, survey.host_flops, placebos=True) > most
    counted = run(task, config).incubator_gflops * 1e9  # the probes, and one tournament
    assert (least + most) / 2 == pytest.approx(counted, rel=0.25)


def test_the_largest_cost_of_a_tournament_is_that_in_which_the_most_expensive_forks_continue() -> None:
    survey = survey_of(tiny_task(model=Deep, slots=["layers.*"]), tiny_config(**RUNGS))

    def cost(flops: int) -> float:
        """Four of twelve candidates have these FLOPs beside those of the host, and the others have none."""
        tried = [pair.model_copy(update={"flops": flops * (place < 4)}) for place, pair in enumerate(survey.options)]
        return largest_flops(survey, tried[:12], survey.host_flops, placebos=False)

    heats = 4 * (10 + 64 / 96) + 4 * (10 + 128 / 96) + 3 * (20 + 256 / 96)  # 12, 6 and 3 candidates
    assert cost(1000) - cost(0) == pytest.approx(1000 * (4 * PROBE_BATCHES + heats + 256 / 96))


def test_only_a_first_tournament_without_an_accepted_seed_counts_later_looks() -> None:
    def cost(ordinal: int | None, *, replica: bool = False, **growth: int) -> float:
        survey = survey_of(tiny_task(), tiny_config(growth__entry="adopt", **growth))
        key, (dear, *_) = RunKey("run", 0, b"key"), sorted(survey.options, key=lambda pair: -pair.flops)
        state = first_state(survey, key, make_kasmina(survey, key, SystemClock()).view(survey.first_fence))
        culled = SeedState.model_construct(ordinal=ordinal, stage=Stage.CULLED)
        return run_flops(survey, state.model_copy(update={"seeds": (culled,)}), [dear], replica=replica)

    beside = {"growth__placebos": 2, "growth__beside": 1}
    assert cost(None, **beside) > cost(None, growth__placebos=2)
    assert cost(0, **beside) == cost(0, growth__placebos=2) > cost(0)
    assert cost(0, replica=True, **beside) == cost(0)


@pytest.mark.parametrize("winner", [None, "seed-1"])
def test_the_limit_of_the_cost_knows_a_replica(winner: str | None) -> None:
    told: list[bool] = []

    def costs(*_: object, replica: bool) -> float:
        told.append(replica)
        return 2e9

    decision = Decision.model_construct(pairs=(), replica_of=winner)
    state = RoundState.model_construct(fence=3)
    assert CostLimit(2.0, costs).exceeded(state, decision) is None
    assert CostLimit(1.9, costs).exceeded(state, decision) is not None
    assert told == [winner is not None] * 2


def places(**overrides: Any) -> dict[str, str]:
    return {candidate["blueprint"]: candidate["place"] for candidate in plan(**THREE, **overrides)["candidates"]}


@pytest.mark.parametrize(
    ("overrides", "mlp"),
    [
        ({}, "first tournament"),
        ({"growth__candidates": 2}, "queued"),
        ({"growth__candidates": 2, "growth__best_again": 1}, "not tried: growth.candidates"),
        ({"growth__candidates": 2, "growth__max_tournaments": 1}, "not tried: growth.candidates"),
        ({"growth__candidates": 2, "growth__first_fence": 9}, "queued"),
        ({"growth__candidates": 2, "growth__first_fence": 10}, "not tried: growth.candidates"),  # the last one
        ({"growth__max_tests": 2}, "not tried: growth.max_tests"),
        ({"risk__max_cost_ratio": 4.0, "growth__best_again": 1}, "not tried: risk.max_cost_ratio"),
        ({"growth__parameter_budget": 2.0}, "over growth.parameter_budget"),
        ({"growth__memory_budget": 2.0}, "over growth.memory_budget"),
        ({"growth__cost_budget": 2.0}, "over growth.cost_budget"),
        ({"growth__cost_budget": 2.0, "growth__memory_budget": 2.0}, "over growth.memory_budget, growth.cost_budget"),
        ({"risk__max_cost_ratio": 4.0}, "queued"),
        ({"run__epochs": 1}, "nothing grows"),
        ({"growth__enabled": False}, "nothing grows"),
        ({"run__epochs": 1, "growth__cost_budget": 2.0}, "over growth.cost_budget"),
    ],
)
def test_each_candidate_has_its_place_in_the_run(overrides: dict[str, Any], mlp: str) -> None:
    found = places(**overrides)
    too_short = {"run__epochs", "growth__enabled"} & overrides.keys()
    others = "nothing grows" if too_short else "first tournament"
    assert found == {"norm": others, "low_rank": others, "mlp": mlp}


def test_what_a_budget_leaves_out_is_said_by_the_plan_the_start_and_the_report(tmp_path: Path) -> None:
    small = {**THREE, "growth__memory_budget": 2.0, "growth__cost_budget": 2.0}
    names = dict.fromkeys(("growth.memory_budget", "growth.cost_budget"), ("mlp at body",))
    assert plan(**small)["left_out_by_budgets"] == names
    assert plan(**small, growth__parameter_floor=2000)["left_out_by_budgets"] == {}
    config = tiny_config(run__dir=str(tmp_path / "run"), run__epochs=1, **small)
    survey = survey_of(tiny_task(), config)
    assert "  left out, over growth.memory_budget: mlp at body" in heading(survey, None)
    assert run(tiny_task(), config).left_out_by_budgets == names


def test_a_run_whose_first_tournament_would_hold_nobody_says_so() -> None:
    found = plan(growth__memory_budget=0.01)
    assert set(places(growth__memory_budget=0.01).values()) == {"over growth.memory_budget"}
    assert found["first_hold"]["reason"] == "budget_spent"
    said = "\n".join(plan_view.lines(found))
    assert "at the first of them nothing would be tried: no pair is within both growth.memory_budget and" in said


def test_a_run_too_short_to_grow_says_what_it_lacks() -> None:
    found = plan(run__epochs=3)
    assert (found["germinates_at_fences"], found["twin_gflops"], found["tournament_bytes"]) == (None, 0.0, 0)
    said = plan_view.lines(found)[0]
    assert said.startswith("nothing can germinate: the run has 5 rounds; a seed that germinates at fence 1")
    assert "needs 6 more" in said
    for key, value in re.findall(r"(\w+\.\w+)=(\d+)", said.partition("each of these is enough alone: ")[2]):
        changes = {"run__epochs": 3, key.replace(".", "__"): int(value)}
        assert survey_of(tiny_task(), tiny_config(**changes)).can_grow, key
    assert "run.epochs=" in said
    assert "run.round_steps=" in said


@pytest.mark.parametrize(
    ("overrides", "why"),
    [({"run__epochs": 1}, "the run is too short (see below)"), ({"growth__enabled": False}, "growth is off")],
)
def test_where_nothing_grows_candidates_of_one_place_share_a_row(overrides: dict[str, Any], why: str) -> None:
    console = Console(width=150, record=True, file=StringIO())
    console.print(plan_view.candidates(plan(growth__cost_budget=2.0, **THREE, **overrides)))
    rows = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines() if "  " in line.strip()][
        1:
    ]
    assert [(row[0], row[-1]) for row in rows] == [("body", f"none: {why}"), ("mlp", "over cost_budget")]
    assert rows[0][1] == "low_rank and norm"
    assert " to " in rows[0][2]


def test_what_a_star_leaves_out_is_in_the_plan_and_in_the_heading_of_a_run() -> None:
    found = survey_of(tiny_task(slots=["*"], model=Around), tiny_config(growth__enabled=False))
    assert [slot["path"] for slot in forecast(found)["slots"]] == ["body", "head"]
    assert forecast(found)["left_out"] == [
        {"slot": "pair", "why": "output of type list"},
        {"slot": "same", "why": "output of type list"},
    ]
    assert "  no slot, output of type list: pair, same" in heading(found, None)


class Twofold(torch.nn.Module):
    """[B, 8] -> a list of twice [B, 8]."""

    def forward(self, x_BC: torch.Tensor) -> list[torch.Tensor]:
        return [x_BC, x_BC]


class Around(TinyHost):
    """A host two of whose modules return lists."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.same = Twofold(), Twofold()

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        return super().forward(self.same(self.pair(x_BC)[0])[1])


@pytest.mark.parametrize("width", [80, 60])
def test_the_table_of_candidates_fits_and_cuts_no_name_short(width: int) -> None:
    console = Console(width=width, record=True, file=StringIO())
    slot = "encoder.layers.with_a_long_name.of_every_part.and_then_some.more_of_it.feed_forward"
    row = plan(growth__memory_budget=2.0, growth__cost_budget=2.0)["candidates"][1]
    console.print(plan_view.candidates({"candidates": [row | {"slot": slot}], "germinates_at_fences": [1, 2]}))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    ruled = next(place for place, line in enumerate(lines) if "\u2500" in line)
    folded = [line[1:].split("  ")[0].strip() for line in lines[ruled + 1 :]]
    assert "".join(folded) == slot


def test_the_steps_of_a_tournament_are_told_from_its_snapshot_on() -> None:
    said = "\n".join(plan_view.lines(plan(**THREE, growth__first_step=50)))
    assert "first tournament, from the snapshot at step 60 of the run on: 3 candidates train 10 steps (judged" in said


def test_the_twin_costs_the_hosts_steps_after_the_first_tournament_or_nothing() -> None:
    found = plan()
    assert found["host_gflops"] * 1e9 == pytest.approx(320 * survey_of(tiny_task(), tiny_config()).host_flops)
    assert found["twin_gflops"] == pytest.approx(found["host_gflops"] * (320 - 40) / 320)
    assert plan(growth__twin=False)["twin_gflops"] == 0.0


@pytest.mark.slow
def test_a_run_keeps_the_limit_of_its_compute_and_says_why_it_tries_nothing(tmp_path: Path) -> None:
    settings = {"growth__entry": "adopt", "growth__finish": "better", "growth__placebos": 2, "growth__beside": 1}
    before = plan(**settings)
    most, little = before["total_gflops_most"], 1.5 * before["host_gflops"]  # less than live host and twin
    without = plan(**settings | {"growth__beside": 0})
    assert without["total_gflops_most"] + before["looks_gflops_most"] == pytest.approx(most)
    assert any("; if it is refused, its later looks take up to" in line for line in plan_view.lines(before))
    assert not any("later looks" in line for line in plan_view.lines(without))
    run_of = partial(tiny_config, **settings)
    kept = run(tiny_task(), run_of(run__dir=str(tmp_path / "kept"), growth__max_cost=most))
    assert kept.growth.tournaments > 1  # after an accepted seed, without later looks, replicas fit
    assert 0.3 * most < kept.trainer_gflops + kept.incubator_gflops + kept.twin_gflops <= most
    tight = run_of(run__dir=str(tmp_path / "tight"), growth__max_cost=little)
    found = run(tiny_task(), tight)
    assert (found.growth.tournaments, found.seeds) == (0, ())
    assert "GFLOP of the run with another tournament (growth.max_cost)" in (found.why_none_stayed or "")
    foretold = forecast(survey_of(tiny_task(), tight))
    assert (foretold["first_hold"]["reason"], foretold["max_cost_gflops"]) == ("budget_spent", little)
    held = [one.body for one in read(journal_file(tmp_path / "tight", 1))[0] if one.kind is RecordKind.HOLD]
    assert foretold["first_hold"] == next(one for one in held if one["reason"] == "budget_spent")
    assert foretold["first_hold"]["measured"] == pytest.approx(most)
    assert any(line.startswith("growth.max_cost: the whole run takes at most") for line in plan_view.lines(foretold))
    assert any("(growth.max_cost)" in line for line in heading(survey_of(tiny_task(), tight), None))


# -- waits -------------------------------------------------------------------------------------------------------

HOST = Work(making_s=0.0, step_s=1.0, evaluation_s=3.0)
FORK = Work(making_s=0.5, step_s=2.0, evaluation_s=4.0)


def measured(forks: int) -> Timings:
    return Timings(HOST, (FORK,) * forks, probe_s=1.5)


def test_pieces_go_to_managers_by_their_number_and_the_busiest_decides() -> None:
    pieces = [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0)]
    assert [busiest(pieces, managers) for managers in (1, 2, 3, 4)] == [15.0, 10.0, 9.0, 8.0]
    assert busiest([(4, 1.0), (6, 2.0)], managers=2) == 3.0


@pytest.mark.parametrize(
    ("forks", "heats", "managers", "expected"),
    [
        (4, (10, 20), 1, (10 + 3) + (20 + 3) + 4 * (0.5 + 2 * 10 + 4) + 2 * (2 * 20 + 4)),  # all in turn; half go on
        (4, (10, 20), 5, (0.5 + 2 * 10 + 4) + (2 * 20 + 4)),  # every heat lasts as long as its longest
        (2, (30,), 3, 0.5 + 2 * 30 + 4),
    ],
)
def test_forks_are_shared_out_by_their_number_and_the_busiest_manager_decides(
    forks: int, heats: tuple[int, ...], managers: int, expected: float
) -> None:
    gate, last = (3 + 4 if managers == 1 else 4), len(heats) - 1  # control and winner are with different managers
    field = [(steps, 1.0, forks if place == 0 else forks // 2) for place, steps in enumerate(heats[: last + 1])]
    assert tournament_s(measured(forks), field, managers) == expected + gate


def test_which_forks_reach_a_later_rung_decides_how_they_share_their_managers() -> None:
    """Two of the forks 1 to 4 go on: both with manager 0 beside the control, both with manager 1, or one with each."""
    first, control, fork = 13 + 2 * 24.5, 20 + 3, 40 + 4
    later = (max(control, 2 * fork) + (control + 2 * fork) + 4 * (control + fork)) / 6
    gate = (7 + 4) / 2  # the winner is evaluated by manager 0 after the control, or by manager 1 at the same time
    found = tournament_s(measured(4), [(10, 1.0, 4), (20, 1.0, 2)], 2)
    assert found == pytest.approx(first + later + gate, rel=0.03)


def test_placebos_train_to_the_last_rung_and_are_judged_on_the_gate_shard() -> None:
    placebo = Work(making_s=0.25, step_s=1.5, evaluation_s=2.0)
    beside = replace(measured(4), placebos=(placebo,) * 3)
    field = [(10, 1.0, 4), (20, 1.0, 2)]
    each = 0.25 + (10 + 20) * 1.5 + 2 * 2.0 + 2.0
    assert tournament_s(beside, field, 1) == tournament_s(measured(4), field, 1) + 3 * each
    found = waits(replace(measured(3), placebos=(replace(placebo, step_s=0.1),) * 3), growth__probe_steps=3)
    assert found["managers_for_no_wait"] == 4  # as without placebos: numbers 4 to 6 are with managers 0 to 2
    slow = waits(replace(measured(3), placebos=(replace(FORK, step_s=3.8),) * 3), growth__probe_steps=3)
    assert (slow["managers_for_no_wait"], slow["fence_wait_least_s"]) == (7, 1.5)  # more than candidates and control


def test_a_replica_its_control_and_the_twin_share_one_manager_or_none() -> None:
    control, replica, twin, gate = 0.5 + 20 + 4, 0.5 + 30 + 5, 10, 4 + 5
    assert replica_s(measured(2), 10, 1, twin=True) == control + replica + twin + gate
    assert replica_s(measured(2), 10, 1, twin=False) == control + replica + gate
    assert replica_s(measured(2), 10, 2, twin=True) == max(control, replica + twin) + 5  # numbers 3, 4 and 0
    placebo = replace(measured(2), placebos=(FORK,))
    assert replica_s(placebo, 10, 2, twin=True) == max(control + twin, replica) + 5  # numbers 4, 5 and 0


def test_probes_are_shared_out_and_the_last_manager_to_end_counts() -> None:
    assert [probes_s(measured(4), 4, managers) for managers in (1, 3, 4, 9)] == [6.0, 3.0, 1.5, 1.5]


HALVED = [(10, 1.0, 3), (10, 1.0, 2)]


def waits(cost: Timings, **overrides: Any) -> dict[str, Any]:
    return foretell_waits(survey_of(tiny_task(), tiny_config(**overrides)), cost)


def test_the_trainer_waits_for_what_its_own_round_does_not_cover() -> None:
    found = waits(measured(3), growth__managers=2)
    assert found["fence_wait_first_s"] == 2 * 1.5 + tournament_s(measured(3), HALVED, 2) - 20 * 1.0
    assert found["fence_wait_replica_s"] == 1.5 + replica_s(measured(3), 20, 2, twin=True) - 20 * 2.0
    assert found["tournament_s"] == 3 * 1.5 + tournament_s(measured(3), HALVED, 1)
    assert (found["step_s"], found["managers"], found["managers_for_no_wait"]) == (1.0, 2, None)
    assert waits(measured(3), growth__managers=2, growth__replicas=1)["fence_wait_replica_s"] is None
    alone = plan_view.lines(plan(growth__replicas=1))[-1]
    assert ("for a replica" in plan_view.lines(plan())[-1], "for a replica" in alone) == (True, False)


def test_a_second_tournament_has_one_seed_more_in_each_network_but_the_twin() -> None:
    placebo = replace(FORK, step_s=3.0)
    found = waits(replace(measured(3), placebos=(placebo,)), growth__best_again=2)
    control, gate = 0.5 + 20 * 2 + 4, 4 + 5 + 5  # steps of 1 s for the host, and 1 s more with each seed of `FORK`
    seeds, useless, twin = 2 * (0.5 + 20 * 3 + 5), 0.5 + 20 * 4 + 5, 20 * 1
    assert found["fence_wait_again_s"] == 2 * 1.5 + control + seeds + useless + gate + twin - 20 * 2
    for other in ({}, {"growth__best_again": 2, "growth__max_tournaments": 1}):
        assert waits(measured(3), **other)["fence_wait_again_s"] is None
    said = plan_view.lines(plan(growth__best_again=2))[-1]
    assert ("for a second one after an accepted seed" in said, "second one" in plan_view.lines(plan())[-1]) == (
        True,
        False,
    )


def test_a_short_probe_ends_with_its_round_if_enough_managers_share_it() -> None:
    found = waits(measured(3), growth__probe_steps=3)
    whole = [(3, 1.0, 3)]
    assert tournament_s(measured(3), whole, 3) > 20 >= tournament_s(measured(3), whole, 4)
    assert (found["managers_for_no_wait"], found["fence_wait_least_s"]) == (4, 1.5)
    assert found["fence_wait_first_s"] > found["fence_wait_least_s"]


def test_a_run_that_cannot_grow_waits_for_nobody() -> None:
    found = plan(run__epochs=1)
    assert found["step_s"] > 0
    names = [f"fence_wait_{one}_s" for one in ("first", "again", "replica", "least")]
    assert [found[name] for name in (*names, "managers_for_no_wait", "tournament_s")] == [None] * 6


def test_measuring_times_the_host_and_every_candidate_of_the_first_tournament() -> None:
    cost = measure(survey_of(tiny_task(), tiny_config(growth__candidates=2, growth__placebos=3)))
    assert (len(cost.forks), len(cost.placebos)) == (2, 3)
    for work in (cost.host, *cost.forks, *cost.placebos):
        assert min(work.making_s, work.step_s, work.evaluation_s, cost.probe_s) > 0


def test_measuring_leaves_the_bits_of_a_run_alone(tmp_path: Path) -> None:
    before = run(tiny_task(), tiny_config(run__dir=str(tmp_path / "a"), growth__enabled=False))
    plan()
    after = run(tiny_task(), tiny_config(run__dir=str(tmp_path / "b"), growth__enabled=False))
    assert before.weights_sha256 == after.weights_sha256
