"""Why nothing grew: counted fence by fence, the same after a stop, and said at the end with its figures."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from esper import resume, run
from esper.archive.inspection import inspect_run
from esper.archive.journal import RecordKind, read
from esper.archive.run_directory import journal_file
from esper.cli import inspect_view
from esper.cli.terminal import results
from esper.errors import Drained
from esper.flow.result import Result
from esper.flow.tally import TallyState
from esper.leyline.decisions import Hold, HoldReason
from esper.leyline.reports import Check, Gate, GateReport
from esper.setup.growth_log import GrowthLog, none_stayed
from esper.testing import StopAt, tiny_config, tiny_task


def report(gate: Gate = Gate.G2, z: float = 1.0) -> GateReport:
    check = Check(name="z", reason="no_improvement", measured=z, above=3.0)
    return GateReport(gate=gate, seed_id="s", fence=3, checks=(check,))


def test_refusals_are_counted_by_gate_and_reason_with_the_latest_figures() -> None:
    log = GrowthLog()
    for one in (report(z=1.0), report(gate=Gate.G1, z=0.5), report(z=3.1), report(z=2.0)):
        log = log.judged(one)
    assert [(one.gate, one.reason, one.count, one.figures) for one in log.refusals] == [
        ("G1", "no_improvement", 1, "z 0.5, needs above 3"),
        ("G2", "no_improvement", 2, "z 2, needs above 3"),
    ]


def test_holds_are_counted_by_reason_and_detail() -> None:
    log = GrowthLog()
    for detail in ("full", "empty", "full"):
        log = log.held(Hold(fence=1, reason=HoldReason.BUDGET_SPENT, detail=detail, measured=7.0, limit=4.0))
    assert [(one.detail, one.count, one.figures) for one in log.holds] == [
        ("empty", 1, "7, limit 4"),
        ("full", 2, "7, limit 4"),
    ]


def test_the_sentence_leaves_out_what_says_nothing_of_why() -> None:
    beaten = Check(name="rank", reason="outperformed", measured=2, at_most=1)
    log = (
        GrowthLog()
        .concluded()
        .judged(report())
        .judged(GateReport(gate=Gate.G2, seed_id="t", fence=3, checks=(beaten,)))
    )
    for detail in ("a tournament is in flight", "every slot is full"):
        log = log.held(Hold(fence=1, reason=HoldReason.NO_OPEN_SLOT, detail=detail))
    assert none_stayed(log, 2, "mlp at body, z 1.00 (limit 3.00)") == (
        "no seed stayed of 2 candidates in 1 tournament; best: mlp at body, z 1.00 (limit 3.00); refused: G2"
        " no improvement 1x (latest: z 1, needs above 3); nothing new was tried at 1 fence: every slot is full"
    )


def test_later_looks_are_no_tournaments() -> None:
    log = GrowthLog().concluded().looked().looked()
    assert none_stayed(log, 3, "") == "no seed stayed of 3 candidates in 1 tournament and 2 later looks"
    assert none_stayed(log.looked(), 3, "").endswith("and 3 later looks")


@pytest.mark.slow
def test_a_run_with_one_tournament_reports_one_and_its_later_looks(tmp_path: Path) -> None:
    settings = {"growth__entry": "adopt", "growth__beside": 2, "growth__margin": 0.9, "growth__max_tournaments": 1}
    found = run(tiny_task(), tiny_config(run__dir=str(tmp_path / "run"), **settings))
    entries, _ = read(journal_file(tmp_path / "run", 1))
    orders = [one.body for one in entries if one.kind is RecordKind.INCUBATION_BEGUN]
    looks = sum(one.get("goes_on_from") is not None for one in orders)
    assert looks > 1
    assert (found.growth.tournaments, found.growth.looks) == (1, looks)
    assert f"in 1 tournament and {looks} later looks" in (found.why_none_stayed or "")


def test_a_tally_of_a_version_without_the_log_is_still_read() -> None:
    kept = TallyState(
        steps=1,
        trainer_flops=1,
        incubator_flops=1,
        incubator_steps=1,
        training_s=1.0,
        fences_s=1.0,
        fence_wait_s=1.0,
        checkpoint_s=1.0,
        rollbacks=0,
    )
    text = json.dumps({name: value for name, value in json.loads(kept.model_dump_json()).items() if name != "growth"})
    assert TallyState.model_validate_json(text) == kept


@pytest.fixture(scope="module")
def barren(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run in which every seed is refused by G2."""
    path = tmp_path_factory.mktemp("barren") / "run"
    return run(tiny_task(), tiny_config(run__dir=str(path), growth__margin=0.9))


def test_a_run_that_refused_every_seed_says_by_which_gate_and_figure(barren: Result) -> None:
    best = max((seed for seed in barren.seeds if seed.z is not None), key=lambda seed: seed.z or 0.0)
    assert barren.why_none_stayed is not None
    assert f"{len(barren.seeds)} candidates in {barren.growth.tournaments} tournaments" in barren.why_none_stayed
    figures = f"gain {best.gain:.2%} (margin 90.00%), z {best.z:.4g} (limit 3.715)"
    assert f"best: {best.blueprint} at body, {figures}" in barren.why_none_stayed
    assert "refused: G2 no improvement" in barren.why_none_stayed
    looked = inspect_run(Path(barren.run_dir))
    for text in (shown(150, results(barren)), shown(150, inspect_view.judged(looked))):
        assert f"not accepted, no improvement: {figures}" in text
    assert json.loads(json.dumps(barren.as_json()))["why_none_stayed"] == barren.why_none_stayed


def test_a_stop_in_between_loses_no_count(barren: Result, tmp_path: Path) -> None:
    config = tiny_config(run__dir=str(tmp_path / "run"), growth__margin=0.9)
    with pytest.raises(Drained):
        run(tiny_task(), config, drain=(watch := StopAt(5)).drain, progress=watch)
    result = resume(tmp_path / "run", tiny_task())
    assert (result.growth, result.why_none_stayed) == (barren.growth, barren.why_none_stayed)
    assert [seed.g2 for seed in result.seeds] == [seed.g2 for seed in barren.seeds]


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"growth__enabled": False}, "growth is off"),
        ({}, "no candidate was tried: the run has 2 rounds"),
        (
            {"run__epochs": 5, "growth__memory_budget": 0.01},
            "no candidate was tried; nothing new was tried at 2 fences: no pair",
        ),
        ({"run__epochs": 5, "growth__max_gradient_norm": 1e-9}, "refused: G1 gradient exploding"),
    ],
)
def test_a_run_that_held_no_tournament_says_why(overrides: dict[str, Any], why: str, tmp_path: Path) -> None:
    result = run(tiny_task(), tiny_config(**{"run__dir": str(tmp_path / "run"), "run__epochs": 1} | overrides))
    assert result.why_none_stayed is not None
    assert why in result.why_none_stayed


def shown(width: int, *parts: Table | Any) -> str:
    console = Console(width=width, record=True, file=StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


SLOT = "encoder.layers.with_a_long_name.of_every_part.and_then_some.more_of_it.feed_forward"


@pytest.mark.parametrize("width", [80, 60])
def test_the_end_of_a_run_and_inspect_fit_and_cut_no_name_short(barren: Result, width: int) -> None:
    found = inspect_run(Path(barren.run_dir))
    far = {
        "seeds": tuple(seed.model_copy(update={"slot": SLOT}) for seed in barren.seeds),
        "run_dir": f"/a/{SLOT}/run",
        "test_metrics": {"[bold]accuracy[/x]": 0.5},
    }
    end = shown(width, results(barren.model_copy(update=far)))
    far_seeds = [{**seed, "slot": SLOT} for seed in found["seeds"]]
    seeds = {**found, "seeds": far_seeds}
    looked = shown(width, inspect_view.losses(found), inspect_view.seeds(seeds), inspect_view.judged(found))
    for text in (end, looked):
        assert max(map(len, text.splitlines())) <= width
        assert SLOT in unfolded(text)
    assert "[bold]accuracy[/x]" in end


def unfolded(text: str) -> str:
    """The second column of a table, its lines joined."""
    lines = text.splitlines()
    header = next(line for line in lines if line.strip().startswith("seed"))
    start, end = header.index("slot"), header.index("blueprint")
    return "".join(line[start:end].strip() for line in lines)


def test_inspect_shows_losses_and_winners_and_counts_the_rest(barren: Result) -> None:
    found = inspect_run(Path(barren.run_dir))
    judged = [seed for seed in barren.seeds if seed.z is not None]
    text = shown(80, inspect_view.losses(found), inspect_view.seeds(found))
    assert f"{barren.start_test_loss:.4f} -> {barren.test_loss:.4f}" in text
    assert text.count("DORMANT") == len(judged) < len(barren.seeds)
    rest = len(barren.seeds) - len(judged)
    assert inspect_view.beaten(found) == f"and {rest} culled in tournaments or before (body {rest}); --json lists them"
    assert len(found["seeds"]) == len(barren.seeds)
