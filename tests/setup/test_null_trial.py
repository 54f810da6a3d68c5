"""Tournaments of useless seeds: placebos refuse what passes without them, and the share is told with its interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from esper.cli import null_view
from esper.cli.main import exit_code
from esper.errors import ConfigError
from esper.kasmina.judging.statistics import exact_interval
from esper.setup.null_trial import NullTournament, NullTrial, null_trial
from esper.setup.survey import survey_of
from esper.testing import tiny_config, tiny_task

SHORT = {"growth__preset": "lean", "growth__rungs": (20, 40), "growth__rung_samples": (128, 256)}


def trial(tournaments: int, **settings: Any) -> NullTrial:
    config = tiny_config(**{"run__epochs": 6, **SHORT, **settings})
    return null_trial(survey_of(tiny_task(), config), tournaments)


@pytest.mark.slow
def test_a_useless_seed_that_passes_z_is_refused_by_the_placebos_of_its_tournament() -> None:
    whole = {"growth__rungs": (40,), "growth__rung_samples": (256,)}  # no seed is dropped before the end
    alone, beside = (trial(1, growth__margin=1e-9, growth__placebos=count, **whole).tournaments[0] for count in (0, 3))
    assert (alone.kind, alone.accepted, alone.reasons) == ("frozen", True, ())
    assert (beside.kind, beside.accepted, beside.reasons) == ("frozen", False, ("within_placebo",))
    assert beside.figures["z"] == alone.figures["z"]  # the same first seed: placebos change no candidate
    limit = beside.figures["gain_over_placebos"]
    assert limit["measured"] is not None
    assert limit["above"] is not None
    assert limit["above"] > 2 * limit["measured"]


@pytest.mark.slow
def test_a_trial_repeats_with_other_seeds_and_gives_the_same_figures_again() -> None:
    first, again = trial(2), trial(2)
    assert first == again
    assert [one.run_seed for one in first.tournaments] == [1, 2]
    assert first.tournaments[0].figures != first.tournaments[1].figures
    assert (first.candidates, first.placebos, first.tests) == (3, 3, 1)


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


def test_a_run_without_a_tournament_has_nothing_to_repeat() -> None:
    with pytest.raises(ConfigError, match="no seed can germinate"):
        trial(1, run__epochs=1)


@pytest.mark.parametrize(("hits", "count"), [(0, 100), (1, 100), (5, 100), (100, 100), (2, 15)])
def test_the_interval_is_that_of_clopper_and_pearson(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(method="exact")
    assert exact_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_words_have_the_share_the_interval_and_each_tournament() -> None:
    def one(kind: str | None, *reasons: str) -> NullTournament:
        return NullTournament(7, accepted=kind is not None and not reasons, kind=kind, reasons=reasons, figures={})

    all_of = (one("bias"), one("noise", "no_improvement", "within_placebo"), one(None))
    assert [null_view.line(each) for each in all_of] == [
        "run seed 7: bias came first, accepted",
        "run seed 7: noise came first, refused: no improvement, within placebo",
        "run seed 7: every seed diverged",
    ]
    said = null_view.summary(NullTrial(all_of, candidates=12, placebos=3, tests=1))
    assert said.startswith("1 of 3 tournaments of 12 useless seeds and 3 placebos accepted one: 33.3%")
    assert "95 % interval 0.8% to 90.6%" in said
