"""`[growth.blueprints]`: which candidates a slot has, and that a choice without effect is refused, and not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from growing import slot

from esper.config.joined import RunConfig, as_toml, flattened, load_config
from esper.errors import ConfigError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.incubation.choices import chosen
from esper.kasmina.settings import BlueprintChoice
from esper.leyline.slots import Kind
from esper.setup.survey import survey_of
from esper.testing import telling, tiny_config, tiny_task

ROW, IMAGE = slot("head"), slot("features.0", Kind.NCHW, (8, 4, 4))


def names(**choices: Any) -> dict[str, list[str]]:
    growth = load_config(None, {"growth.blueprints": choices["given"]}).growth.blueprints
    return {path: [one.name for one in made] for path, made in chosen((ROW, IMAGE), growth, BLUEPRINTS).items()}


EVERY = names(given={})


@pytest.mark.parametrize(
    ("given", "head", "image"),
    [
        ({"head": ["mlp"]}, ["mlp"], EVERY["features.0"]),
        ({"features.*": ["norm", "conv3"]}, EVERY["head"], ["conv3", "norm"]),
        (
            {"*": {"exclude": ["norm", "mlp"]}},
            ["gated_mlp", "low_rank", "wide_mlp"],
            [n for n in EVERY["features.0"] if n != "norm"],
        ),
        ({"*": {"exclude": ["norm"]}, "head": ["norm", "mlp"]}, ["mlp"], None),
        ({"head": {"only": ["mlp"]}}, ["mlp"], None),
    ],
)
def test_a_slot_has_the_candidates_that_every_matching_entry_allows(given: Any, head: Any, image: Any) -> None:
    found = names(given=given)
    assert found["head"] == head
    assert image is None or found["features.0"] == image


@pytest.mark.parametrize(
    ("given", "below", "value", "told"),
    [
        ({"hed": ["mlp"]}, "", "hed", ["'head'"]),
        ({"head": ["mpl"]}, '."head"', "mpl", ["'mlp'"]),
        ({"*": {"exclude": ["mpl"]}}, '."*"', "mpl", ["'mlp'"]),
        ({"head": ["mlp", "conv3"]}, '."head"', "conv3", ["NCHW", "NC"]),
        ({"*": ["mlp"]}, "", "*", ["features.0", "task.slots"]),
        ({"*": []}, "", [], ["exclude"]),
        ({"*": {"exclude": ["norm"], "only": ["mlp"]}}, "", {"exclude": ["norm"], "only": ["mlp"]}, ["exclude"]),
        ({"*": {"exlude": ["norm"]}}, "", {"exlude": ["norm"]}, ["exclude"]),
        ({"*": [3]}, "", 3, ["text"]),
        (["mlp"], "", ["mlp"], ["table"]),
    ],
)
def test_a_choice_without_effect_is_refused(given: Any, below: str, value: Any, told: list[str]) -> None:
    with pytest.raises(ConfigError, check=telling(*told, field=f"growth.blueprints{below}", value=value)):
        names(given=given)


def test_a_choice_survives_toml_run_json_and_a_resume(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[growth.blueprints]\n"blocks.*" = ["mlp"]\nhead = { exclude = ["norm"] }\n')
    config = load_config(tmp_path / "c.toml")
    assert config.growth.blueprints["head"] == BlueprintChoice(exclude=("norm",))
    (tmp_path / "again.toml").write_text(as_toml(config))
    assert load_config(tmp_path / "again.toml") == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert load_config(None, flattened(config)) == config


def test_a_run_tries_what_was_chosen_alone() -> None:
    found = survey_of(tiny_task(), tiny_config(growth__blueprints={"body": {"exclude": ["norm", "mlp"]}}))
    assert [pair.blueprint_id for pair in found.options] == ["gated_mlp", "low_rank", "wide_mlp"]
