"""Presets of growth: values for several keys at once, over which a given key wins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from esper.cli import plan_view
from esper.cli.terminal import heading
from esper.config.joined import RunConfig, as_toml, load_config
from esper.errors import ConfigError
from esper.kasmina.incubation.rungs import first_fence_of
from esper.kasmina.settings import PRESETS, GrowthConfig
from esper.setup.forecast import forecast
from esper.setup.survey import survey_of
from esper.testing import tiny_config, tiny_task

PAGE = Path(__file__).parents[2] / "docs" / "growth.md"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_keys_and_no_other_and_survives_run_json(name: str) -> None:
    config, plain = load_config(None, {"growth.preset": name}), GrowthConfig(preset="none")
    changed = {key for key in GrowthConfig.model_fields if getattr(config.growth, key) != getattr(plain, key)}
    same_as_default = {key for key, value in PRESETS[name].items() if getattr(plain, key) == value}
    assert changed == ({*PRESETS[name], "preset", "isolate_until"} - same_as_default if name != "none" else set())
    assert all(getattr(config.growth, key) == value for key, value in PRESETS[name].items())
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_a_key_that_is_given_wins_and_an_unknown_preset_is_refused() -> None:
    given = {"growth.preset": "full", "growth.copies": 1, "growth.rungs": [4, 8], "growth.entry": "graft"}
    growth = load_config(None, given).growth
    assert (growth.copies, growth.rungs, growth.rung_samples, growth.placebos) == (1, (4, 8), None, 8)
    assert (growth.entry, growth.isolate_until) == ("graft", "blended")
    stored = RunConfig.model_validate_json(load_config(None, given).model_dump_json()).growth
    assert stored == growth
    for other, gone in (
        ({"growth.due_rounds": 2}, {"rungs": None, "rung_samples": None}),
        ({"growth.halving_step": 9}, {"rungs": None, "rung_samples": None}),
        ({"growth.probe_steps": 9}, {"rungs": None, "entry": "graft"}),
        ({"growth.isolate_until": "blended"}, {"entry": "graft"}),
        ({"growth.twin": False}, {"finish": "live"}),
    ):
        told = load_config(None, other).growth
        assert {key: getattr(told, key) for key in gone} == gone  # the preset's value would contradict the given one
        assert told.copies == PRESETS["full"]["copies"]
    with pytest.raises(ConfigError, match=r"growth.preset = 'big': must be 'none', 'lean' or 'full'"):
        load_config(None, {"growth.preset": "big"})


@pytest.mark.parametrize("key", ["best_again", "max_tournaments", "rungs", "rung_samples"])
def test_a_key_of_a_preset_can_be_switched_off_by_a_word_also_in_a_file(tmp_path: Path, key: str) -> None:
    config = load_config(None, {f"growth.{key}": "none"})
    assert getattr(config.growth, key) is None
    assert getattr(RunConfig().growth, key) is not None
    (tmp_path / "c.toml").write_text(as_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "c.toml") == config


def test_the_plan_names_given_keys_without_effect(tmp_path: Path) -> None:
    given = {"growth.ramp_steps": 9, "growth.finish_samples": 5, "growth.finish": "live", "growth.margin": 0.01}
    growth = load_config(None, given).growth
    assert growth.without_effect == {"ramp_steps": "growth.entry=adopt", "finish_samples": "growth.finish=live"}
    assert plan_view.no_effect(growth.without_effect)[0] == "growth.ramp_steps has no effect with growth.entry=adopt"
    assert load_config(None, {**given, "growth.entry": "graft", "growth.finish": "better"}).growth.without_effect == {}
    at_default = load_config(None, {"growth.due_rounds": 1, "growth.rungs": [4, 8]})
    assert at_default.growth.without_effect == {"due_rounds": "growth.rungs"}
    for name in PRESETS:
        config = load_config(None, {"growth.preset": name})
        (tmp_path / "c.toml").write_text(as_toml(config), encoding="utf-8")
        stored = RunConfig.model_validate_json(config.model_dump_json())
        for one in (config, stored, load_config(tmp_path / "c.toml")):
            assert (one.growth.without_effect, one.growth.preset_left_out) == ({}, {})


def test_plan_and_start_name_the_keys_of_the_preset_that_a_given_key_leaves_out() -> None:
    survey = survey_of(tiny_task(), RunConfig(**{"growth.probe_steps": 40, "run.epochs": 1}))
    left_out = {"probe_steps": {key: PRESETS["full"][key] for key in ("rungs", "rung_samples", "entry")}}
    assert forecast(survey)["preset_left_out"] == left_out
    said = "growth.probe_steps leaves out of the preset: rungs=[30, 60, 120], rung_samples=[128, 256, 512], entry=adopt"
    assert f"  {said}" in heading(survey, None)  # `esper plan` prints it once, in the heading
    assert not any("leaves out" in line for line in plan_view.lines(forecast(survey)))
    both = load_config(None, {"growth.probe_steps": 40, "growth.entry": "graft"}).growth
    assert both.preset_left_out["probe_steps"].keys() == {"rungs", "rung_samples"}
    alone = load_config(None, {"growth.max_looks": 1}).growth
    assert alone.without_effect == {"max_looks": "growth.beside=0"}
    assert load_config(None, {"growth.beside": 2, "growth.max_looks": 0}).growth.without_effect == {
        "beside": "growth.max_looks=0"
    }
    harm = {"growth.harm_z": -1.0}
    assert load_config(None, harm).growth.without_effect == {"harm_z": "growth.replicas=1 and entry=adopt"}
    grafted = {**harm, "growth.entry": "graft"}
    assert load_config(None, grafted).growth.without_effect == {"harm_z": "growth.replicas=1 and finish=better"}
    assert not load_config(None, {**grafted, "growth.finish": "live"}).growth.without_effect
    assert not load_config(None, {**harm, "growth.replicas": 2}).growth.without_effect
    judged = load_config(None, {"growth.judge_samples": 64}).growth  # rungs of the preset leave nothing out
    assert judged.preset_left_out == {"judge_samples": {"rung_samples": PRESETS["full"]["rung_samples"]}}


def test_the_plan_says_what_the_preset_has_set_and_what_replaces_it() -> None:
    own: dict[str, Any] = {"growth__preset": "lean", "growth__copies": 2, "run__epochs": 6}
    found = forecast(survey_of(tiny_task(), tiny_config(**own)))
    assert found["preset_sets"]["placebos"] == found["placebos"] == 6
    assert found["preset_overridden"]["copies"] == 2
    first, second, *_ = plan_view.lines(found)
    assert first.startswith("growth.preset=lean sets ")
    assert "rung_samples" not in first  # the tiny config gives halving_step, which the preset's rungs would replace
    assert second.startswith("instead of the preset's: copies=2")


def test_the_page_has_the_values_of_both_presets() -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {tuple(re.findall(r"`(\w+)`", keys)): values for keys, *values in rows if keys != "`full`"}
    for place, name in enumerate(("full", "lean")):
        for keys, values in told.items():
            if not set(keys) <= PRESETS[name].keys():
                continue
            ours = [PRESETS[name][key] for key in keys]
            flat = [one for value in ours for one in (value if isinstance(value, tuple) else (value,))]
            assert values[place].strip().split(", ") == [
                f"{one:,}" if isinstance(one, int) else str(one) for one in flat
            ]
    named = {key for keys in told for key in keys}
    assert PRESETS["full"].keys() - named == {"probe_ramp_steps", "probe_warmup_steps"}  # those of the defaults


def test_the_run_json_of_a_run_that_named_no_preset_means_none() -> None:
    assert GrowthConfig(preset=None, copies=3) == GrowthConfig(preset="none", copies=3)


@pytest.mark.parametrize(("first_step", "fence"), [(0, 1), (1, 1), (40, 2), (41, 3), (100, 5), (101, 6)])
def test_no_seed_germinates_before_the_first_step(first_step: int, fence: int) -> None:
    assert first_fence_of(tiny_config(growth__first_step=first_step).growth, (0, 20, 40, 60, 80, 100)) == fence
