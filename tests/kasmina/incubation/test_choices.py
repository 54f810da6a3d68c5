"""`[growth.blueprints]`: which candidates a slot has, and that a choice without effect is refused, and not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esper.config.joined import RunConfig, as_toml, flattened, load_config
from esper.errors import ConfigError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.incubation.choices import chosen
from esper.kasmina.settings import BlueprintChoice
from esper.leyline.slots import Kind, SlotSpec
from esper.setup.survey import survey_of
from esper.testing import tiny_config, tiny_task


def spec(path: str, kind: Kind, shape: tuple[int, ...]) -> SlotSpec:
    return SlotSpec(
        path=path, kind=kind, shape=shape, dtype="torch.float32", device="cpu", causal=False, samples_independent=True
    )


ROW, IMAGE = spec("head", Kind.NC, (8,)), spec("features.0", Kind.NCHW, (8, 4, 4))


def names(**choices: Any) -> dict[str, list[str]]:
    growth = load_config(None, {"growth.blueprints": choices["given"]}).growth.blueprints
    return {path: [one.name for one in made] for path, made in chosen((ROW, IMAGE), growth, BLUEPRINTS).items()}


EVERY = names(given={})


@pytest.mark.parametrize(
    ("given", "head", "image"),
    [
        ({"head": ["mlp"]}, ["mlp"], EVERY["features.0"]),
        ({"features.*": ["norm", "conv3"]}, EVERY["head"], ["conv3", "norm"]),
        ({"*": {"exclude": ["norm", "mlp"]}}, ["low_rank"], [n for n in EVERY["features.0"] if n != "norm"]),
        ({"*": {"exclude": ["norm"]}, "head": ["norm", "mlp"]}, ["mlp"], None),
        ({"head": {"only": ["mlp"]}}, ["mlp"], None),
    ],
)
def test_a_slot_has_the_candidates_that_every_matching_entry_allows(given: Any, head: Any, image: Any) -> None:
    found = names(given=given)
    assert found["head"] == head
    assert image is None or found["features.0"] == image


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hed": ["mlp"]}, "growth.blueprints = 'hed': no slot of the task matches; the nearest is 'head'"),
        ({"head": ["mpl"]}, "growth.blueprints.\"head\" = 'mpl': not registered; the nearest is 'mlp'"),
        ({"*": {"exclude": ["mpl"]}}, "growth.blueprints.\"*\" = 'mpl': not registered; the nearest is 'mlp'"),
        ({"head": ["mlp", "conv3"]}, "growth.blueprints.\"head\" = 'conv3': it is for NCHW; the slots are NC"),
        ({"*": ["mlp"]}, "growth.blueprints = '*': nothing is left for slot features.0; leave it out of task.slots"),
        ({"*": []}, "growth.blueprints = []: give a list of blueprints, or { exclude = [...] }"),
        ({"*": {"exclude": ["norm"], "only": ["mlp"]}}, "give a list of blueprints, or { exclude = [...] }"),
        ({"*": {"exlude": ["norm"]}}, "give a list of blueprints, or { exclude = [...] }"),
        ({"*": [3]}, "growth.blueprints = 3: must be a text"),
        (["mlp"], "growth.blueprints = ['mlp']: give a table, such as"),
    ],
)
def test_a_choice_without_effect_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        names(given=given)
    assert said in str(caught.value)


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
    assert [pair.blueprint_id for pair in found.options] == ["low_rank"]
