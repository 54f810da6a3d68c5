"""Tournaments of useless seeds: placebos refuse what passes without them, and the share is told with its interval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from growing import slot
from scipy import stats

from esper.cli import null_view
from esper.cli.main import exit_code
from esper.errors import ConfigError
from esper.kasmina.blueprints.placebos import USELESS, kind_of
from esper.kasmina.judging.statistics import exact_interval
from esper.leyline.slots import Kind
from esper.setup.null_run import distinct
from esper.setup.null_tournament import NullVerdict
from esper.setup.null_trial import NullTrial, null_trial
from esper.setup.survey import open_data, survey_of
from esper.tasks.bands import Bands
from esper.testing import tiny_config, tiny_task

SHORT = {"growth__preset": "lean", "growth__rungs": (20, 40), "growth__rung_samples": (128, 256)}


def trial(tournaments: int, **settings: Any) -> NullTrial:
    config = tiny_config(**{"run__epochs": 6, **SHORT, **settings})
    return null_trial(survey_of(tiny_task(), config), tournaments)


@pytest.mark.slow
def test_a_useless_seed_that_passes_z_is_refused_by_the_placebos_of_its_tournament() -> None:
    whole = {"growth__rungs": (40,), "growth__rung_samples": (256,), "growth__candidates": 2}
    lenient = {"growth__margin": 1e-9, "growth__false_pass": 0.2, "run__seed": 4}
    alone, beside = (trial(1, growth__placebos=count, **lenient, **whole).verdicts[0] for count in (0, 6))
    assert (alone.kind, alone.accepted, alone.reasons) == ("frozen_linear", True, ())
    assert (beside.kind, beside.accepted, beside.reasons) == ("frozen_linear", False, ("within_placebo",))
    assert alone.only_placebos_refuse
    assert beside.only_placebos_refuse
    assert beside.figures["z"] == alone.figures["z"]  # the same first seed: placebos change no candidate
    limit = beside.figures["gain_over_placebos"]
    assert limit["measured"] is not None
    assert limit["above"] is not None
    assert limit["above"] > limit["measured"]


@pytest.mark.slow
def test_a_trial_repeats_with_other_seeds_and_gives_the_same_figures_again() -> None:
    first, again = trial(2), trial(2)
    assert first == again
    assert [one.run_seed for one in first.verdicts] == [1, 2]
    assert first.verdicts[0].figures != first.verdicts[1].figures
    assert (first.candidates, first.placebos, first.tests) == (5, 6, 1)
    assert not first.own_samples  # this task gives its own shards


@pytest.mark.slow
def test_the_commands_print_the_share_and_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["growth.preset=lean", "growth.rungs=[4, 8]", "growth.rung_samples=[128, 128]", "growth.first_step=1"]
    short = [word for key in (*sets, "run.epochs=8") for word in ("--set", key)]
    run = ["run", "esper.tasks.bands:tiny_task", "--in-process", "--run-dir", str(tmp_path / "run"), *short]
    assert exit_code(run) == 0
    capsys.readouterr()
    found = []
    for command in (["plan", "esper.tasks.bands:tiny_task", *short], ["prove", str(tmp_path / "run")]):
        assert exit_code([*command, "--null", "--tournaments", "2", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["tournaments"] == len(found[0]["each"]) == 2
    assert found[0]["share"] == found[0]["accepted"] / 2
    assert found[0]["interval"] == list(exact_interval(found[0]["accepted"], 2))


def test_useless_candidates_differ_from_each_other() -> None:
    specs = (slot("a", Kind.NC, (8,)), slot("b", Kind.NC, (8,)))
    named = [(spec.path, kind_of(name)) for spec, name in distinct(specs, 24)]
    assert [kind for _, kind in named[: len(USELESS)]] == list(USELESS)
    assert {path for path, _ in named} == {"a", "b"}
    for kind, most in (("bias", 2), ("noise", 2), ("dead", 1)):
        of_kind = [one for one in named if one[1] == kind]
        assert len(of_kind) == len(set(of_kind)) == most
    assert len({name for _, name in distinct(specs, 24)}) == 24


@pytest.mark.slow
def test_a_whole_run_judges_each_of_its_tournaments_by_its_own_placebos() -> None:
    config = tiny_config(**{"run__epochs": 6, **SHORT, "growth__max_tournaments": 2, "growth__best_again": 2})
    train = Bands(2048, key=1)
    found = null_trial(survey_of(tiny_task(train=train, pick=None, gate=None), config), 2, whole=True)
    assert [(one.run_seed, one.number) for one in found.verdicts] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert (found.runs, found.in_a_run, found.tests, found.accepted) == (2, 2, 2, 0)
    assert found.own_samples
    first, second = found.verdicts[:2]
    assert first.placebo_gains != second.placebo_gains
    for one in (first, second):  # the second is between the best of the first
        gains = [gain for _, gain in one.placebo_gains if gain is not None]
        assert len(gains) == 6
        spread = np.std(gains, ddof=1) * (7 / 6) ** 0.5
        limit = max(*gains, 0.0) + stats.t.isf(0.05 / (2 * found.candidates), df=5) * spread
        assert one.figures["gain_over_placebos"]["above"] == pytest.approx(limit)


def test_each_run_has_samples_of_its_own() -> None:
    task = tiny_task(train=Bands(2048, key=1), pick=None, gate=None)
    one, same, other = (open_data(task, tiny_config(), split) for split in (1, 1, 2))
    for name in ("train", "pick", "gate"):
        assert list(one.shards[name].indices) == list(same.shards[name].indices)
        assert list(one.shards[name].indices) != list(other.shards[name].indices)


def test_a_run_without_a_tournament_has_nothing_to_repeat() -> None:
    with pytest.raises(ConfigError, match="no seed can germinate"):
        trial(1, run__epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize(("most", "looks"), [(400, (0, 1, 2, 3)), (8, (0, 1))])
def test_a_whole_run_judges_its_refused_seeds_again_later(most: int, looks: tuple[int, ...]) -> None:
    late = {"growth__rungs": (20,), "growth__rung_samples": (256,), "growth__beside": 2, "growth__margin": 0.9}
    tests = {"growth__tests": "tournaments", "growth__max_tests": most}
    config = tiny_config(**{"run__epochs": 6, **SHORT, **late, **tests})
    found = null_trial(survey_of(tiny_task(), config), 1, whole=True)
    assert found.candidates == 5  # a look judges two
    assert [(one.number, one.look) for one in found.verdicts] == [(1, look) for look in looks]
    assert (found.tournaments, found.runs, found.in_a_run, found.looks) == (1, 1, 1, 3)
    assert found.as_json()["looks"] == len(looks) - 1
    assert len({one.placebo_gains for one in found.verdicts}) == len(looks)  # each look has its own placebos
    for one in found.verdicts:  # 13 shares: 10 for the tournament, one for each later look
        tests = 13 if one.look else 1.3
        assert one.figures["z"]["above"] == pytest.approx(stats.t.isf(0.05 / tests, df=255))


@pytest.mark.parametrize("command", [["plan", "esper.tasks.bands:tiny_task"], ["prove", "no-run"]])
@pytest.mark.parametrize(
    ("words", "field", "mend"),
    [
        (["--runs", "3"], "--runs", "only with --null"),
        (["--tournaments", "20"], "--tournaments", "only with --null"),
        (["--null", "--runs", "3", "--tournaments", "20"], "--runs", "takes the place of --tournaments 20"),
    ],
)
def test_counts_that_have_no_effect_are_refused(
    capsys: pytest.CaptureFixture[str], command: list[str], words: list[str], field: str, mend: str
) -> None:
    assert exit_code([*command, *words, "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["error"], told["field"]) == ("ConfigError", field)
    assert mend in told["message"]


@pytest.mark.parametrize(("hits", "count"), [(0, 100), (1, 100), (5, 100), (100, 100), (2, 15)])
def test_the_interval_is_that_of_clopper_and_pearson(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(method="exact")
    assert exact_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_words_have_the_share_the_interval_and_each_tournament() -> None:
    def one(kind: str | None, *reasons: str) -> NullVerdict:
        return NullVerdict(7, accepted=kind is not None and not reasons, kind=kind, reasons=reasons, figures={})

    all_of = (one("bias"), one("noise", "no_improvement", "within_placebo"), one(None))
    assert [null_view.line(each) for each in all_of] == [
        "run seed 7: bias came first, accepted",
        "run seed 7: noise came first, refused: no improvement, within placebo",
        "run seed 7: every seed diverged",
    ]
    said = null_view.summary(NullTrial(all_of, candidates=12, placebos=3, tests=1))
    assert said.startswith("1 of 3 tournaments of 12 useless seeds and 3 placebos accepted one: 33.3%")
    assert "95 % interval 0.8% to 90.6%" in said
    assert "in 1 verdict; share of these that accepted it: 100.0%" in said
    assert "runs" not in said
    whole = NullTrial(all_of, candidates=12, placebos=3, tests=1, in_a_run=3)
    assert "1 of 1 runs of up to 3 tournaments accepted one" in null_view.summary(whole)
    beside = replace(whole, verdicts=(*all_of, replace(all_of[1], look=1)), looks=1)
    assert null_view.line(beside.verdicts[-1]).startswith("run seed 7, later look 1: noise came first")
    assert "1 of 3 tournaments" in null_view.summary(beside)
    assert "1 of 1 runs of up to 3 tournaments with up to 1 later look each accepted one" in null_view.summary(beside)
    assert "judged on the same samples" in null_view.summary(replace(whole, own_samples=False))
