"""The joined config: what it refuses and how it says so, and that what it prints is what it reads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from esper.config import RunConfig, as_toml, load_config, parse_override, parse_overrides
from esper.errors import ConfigError
from esper.faults import FaultSpec
from esper.leyline.base import Settings


def write(folder: Path, text: str) -> Path:
    path = folder / "esper.toml"
    path.write_text(text)
    return path


def complaint(*, file: Path | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


def test_nothing_given_means_the_defaults() -> None:
    assert load_config() == RunConfig()


def test_what_is_printed_is_read_back_as_the_same_config(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, as_toml(RunConfig()))) == RunConfig()


def test_a_config_with_every_kind_of_value_is_read_back(tmp_path: Path) -> None:
    changed = {"run.seed": 3, "run.dir": 'a "b" \\ c', "growth.twin": False, "growth.margin": 0.5, "run.epochs": 2}
    config = load_config(None, changed)
    assert load_config(write(tmp_path, as_toml(config))) == config


def test_every_key_is_printed_under_its_own_comment() -> None:
    lines = as_toml(RunConfig()).splitlines()
    for place, line in enumerate(lines):
        if re.match(r"(# )?\w+ =", line):
            assert re.match(r"# \S.{8,}", lines[place - 1])
            assert "None" not in lines[place - 1]


def test_choices_stand_in_the_comment() -> None:
    assert "(none, blended, fossilized)" in as_toml(RunConfig())


def test_an_override_beats_the_file_and_leaves_its_other_keys(tmp_path: Path) -> None:
    file = write(tmp_path, "[run]\nseed = 1\nthreads = 2\n")
    config = load_config(file, {"run.seed": 5})
    assert (config.run.seed, config.run.threads) == (5, 2)


def test_a_misspelt_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert complaint(run__sed=1) == "run.sed = 1: no such key; the nearest is run.seed"
    assert complaint(runs__seed=1) == "runs.seed = 1: no such key; the nearest is run.seed"
    assert complaint(seed=1) == "seed = 1: no such key; the nearest is run.seed"
    file = write(tmp_path, "[growth]\nramp_step = 1\n")
    assert complaint(file=file) == "growth.ramp_step = 1: no such key; the nearest is growth.ramp_steps"
    assert complaint(file=write(tmp_path, "[grwth]\n")) == "grwth = {}: no such key; the nearest is growth"


def test_a_whole_table_cannot_be_overridden_by_a_value(tmp_path: Path) -> None:
    assert "no such key" in complaint(run=3)
    assert "write it as [run]" in complaint(file=write(tmp_path, "run = 3"), run__seed=1)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("run.seed", "x", "valid integer"),
        ("run.seed", 1.0, "valid integer"),
        ("run.seed", True, "valid integer"),
        ("run.seed", -1, "greater than or equal to 0"),
        ("growth.enabled", 1, "valid boolean"),
        ("growth.false_pass", 1.0, "less than 1"),
        ("growth.isolate_until", "never", "'none', 'blended' or 'fossilized'"),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused_by_name(key: str, value: object, said: str) -> None:
    text = complaint(**{key.replace(".", "__"): value})
    assert text.startswith(f"{key} = {value!r}: ")
    assert said in text


def test_a_file_that_is_no_toml_is_refused_with_the_line(tmp_path: Path) -> None:
    assert "line 2" in complaint(file=write(tmp_path, "[run]\nseed = = 1\n"))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "esper.toml"
    file.write_bytes(b"\xff\xfe")
    assert "no TOML" in complaint(file=file)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    assert complaint(file=tmp_path / "no.toml") == f"--config = '{tmp_path / 'no.toml'}': cannot be read: " + (
        "No such file or directory"
    )


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("run.seed=3", "run.seed", 3),
        ("growth.twin=false", "growth.twin", False),
        ("growth.isolate_until=none", "growth.isolate_until", "none"),
        ('run.dir="a=b"', "run.dir", "a=b"),
        ("run.dir=runs/1", "run.dir", "runs/1"),
        ("run.dir=", "run.dir", ""),
        (" growth.margin = 1e-3 ", "growth.margin", 1e-3),
    ],
)
def test_an_override_is_toml_and_a_bare_word_is_text(text: str, key: str, value: object) -> None:
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize("text", ["run.seed", "", "=3", " =3"])
def test_an_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("use table.key=value")):
        parse_override(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run.seed=1\ngrowth.enabled=false", "use one line; give each key its own --set"),
        ("run.dir=a\rb", "use one line"),
        pytest.param(f"run.seed={'9' * 5000}", "the value cannot be read: Exceeds the limit", id="digits"),
        pytest.param(f"run.seed={'[' * 100_000}", "the value cannot be read: maximum recursion", id="brackets"),
    ],
)
def test_an_override_that_cannot_be_read_whole_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_override(text)
    assert len(str(caught.value)) < 600


def test_a_key_that_is_given_twice_is_refused_with_both_values() -> None:
    with pytest.raises(ConfigError, match=r"run\.seed = 2: given twice, before as 1; give it once"):
        parse_overrides(["run.seed=1", "growth.twin=true", "run.seed=2"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("growth.margin", float("inf"), "finite number"),
        ("policy.deadline_s", float("nan"), "finite number"),
        ("policy.deadline_s", 1e300, "less than or equal to 100000000"),
        ("run.seed", 2**53, f"use at most {2**53 - 1}"),
        pytest.param("run.seed", 16**5000, f"use at most {2**53 - 1}", id="huge"),
        ("growth.parameter_budget", 1e308, "use a size between 1e-100 and 1e+100"),
        ("growth.margin", 5e-324, "use a size between"),
        ("run.threads", 513, "less than or equal to 512"),
        ("growth.managers", 513, "less than or equal to 512"),
        ("run.dir", "a\0b", "leave out the NUL character"),
        ("run.dir", "a\udcff", "it is not UTF-8 text"),
        ("growth.blueprints", {"a\udcff": ["mlp"]}, "it is not UTF-8 text"),
        ("growth.blueprints", {"a": ["\0"]}, "leave out the NUL character"),
        ("faults.point", "x", "write [[faults]] in a file"),
    ],
)
def test_a_value_that_could_not_be_read_back_or_waited_for_is_refused(key: str, value: object, said: str) -> None:
    text = complaint(**{key.replace(".", "__"): value})
    assert text.startswith(f"{key} = ")
    assert said in text


@pytest.mark.parametrize(
    "value",
    [16**5000, [16**5000], "x" * 20_000, ["x"] * 9000, {"x" * 20_000: 1}],
    ids=lambda value: type(value).__name__,
)
def test_a_long_value_is_cut_in_the_message(value: object) -> None:
    assert len(complaint(run__seed=value)) < 500
    assert len(complaint(**{"run." + "x" * 20_000: value})) < 1000


def test_a_text_of_any_characters_is_read_back(tmp_path: Path) -> None:
    config = load_config(None, {"run.dir": "😀 \x7f\x01\t'\"\\ größe"})
    assert load_config(write(tmp_path, as_toml(config))) == config


def test_every_table_of_the_config_refuses_what_cannot_be_kept() -> None:
    assert {type(value) for _, value in RunConfig() if isinstance(value, BaseModel)} <= set(Settings.__subclasses__())
    assert issubclass(FaultSpec, Settings)


def test_a_config_cannot_be_changed_after_it_was_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().run.seed = 1


def test_the_printed_config_is_plain_toml() -> None:
    assert tomllib.loads(as_toml(RunConfig()))["run"]["seed"] == 0
