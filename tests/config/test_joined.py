"""The joined config: what it refuses and how it says so, and that what it prints is what it reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from esper.config.joined import RunConfig, as_toml, load_config, parse_override, parse_overrides
from esper.errors import ConfigError
from esper.faults import FaultSpec
from esper.ground.problems import first_problem
from esper.leyline.base import Settings
from esper.testing import telling


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


def test_a_config_with_every_kind_of_value_is_read_back(tmp_path: Path) -> None:
    changed = {"run.seed": 3, "run.dir": 'a "b" \\ c', "growth.twin": False, "growth.margin": 0.5, "run.epochs": 2}
    config = load_config(None, {"growth.preset": "none", **changed})
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
        ("run.seed", "x", "must be a whole number"),
        ("run.seed", 1.0, "must be a whole number"),
        ("run.seed", True, "must be a whole number"),
        ("run.seed", -1, "must be 0 or more"),
        ("growth.enabled", 1, "must be true or false"),
        ("growth.false_pass", 1.0, "must be below 1"),
        ("growth.isolate_until", "never", "'none', 'blended' or 'fossilized'"),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused_by_name(key: str, value: object, said: str) -> None:
    text = complaint(**{key.replace(".", "__"): value})
    assert text.startswith(f"{key} = {value!r}: ")
    assert said in text


FIELDS = {
    f"{table}.{name}": info
    for table, value in RunConfig()
    if isinstance(value, BaseModel)
    for name, info in type(value).model_fields.items()
}


def limits_of(annotation: Any, metadata: Iterable[Any]) -> Iterator[Any]:
    """The bounds of a field, and those within its type: `Annotated[int, Field(ge=1)] | None`."""
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else [one]
    for inner in get_args(annotation) if isinstance(annotation, UnionType) else ():
        yield from limits_of(inner, ())
    if hasattr(annotation, "__metadata__"):
        yield from limits_of(annotation.__origin__, annotation.__metadata__)


def beyond(info: FieldInfo) -> Iterator[tuple[float, str]]:
    """For each bound of a field: the nearest value beyond it, and what the refusal must say."""
    for limit in limits_of(info.annotation, info.metadata):
        for kind, words, step in (
            (Gt, "above {}", 0),
            (Ge, "{} or more", -1),
            (Lt, "below {}", 0),
            (Le, "{} or less", 1),
        ):
            if isinstance(limit, kind):
                bound = getattr(limit, kind.__name__.lower())
                yield bound + step, f"must be {words.format(int(bound))}"


def test_every_bound_of_the_config_is_refused_with_key_value_and_bound_in_plain_words() -> None:
    told = [(key, value, said) for key, info in FIELDS.items() for value, said in beyond(info)]
    assert len(told) > 40
    for key, value, said in told:
        assert complaint(**{key.replace(".", "__"): value}) == f"{key} = {value!r}: {said}"


def test_no_refusal_of_a_value_speaks_pydantics_words() -> None:
    assert len(FIELDS) > 50
    for key in FIELDS:
        for value in ([[]], float("nan"), {"a": {}} if key != "growth.blueprints" else 3):
            assert not re.search(
                "input|should|valid |type=", complaint(**{key.replace(".", "__"): value}), re.IGNORECASE
            )


class Bounded(BaseModel):
    """Kinds of bounds that no table has yet."""

    even: int = Field(2, multiple_of=2)
    short: str = Field("a", min_length=1, max_length=3, pattern="a")
    few: list[int] = Field([1], min_length=1, max_length=2)
    given: int


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"even": 3}, "even: must be a multiple of 2"),
        ({"short": ""}, "short: must have 1 or more characters"),
        ({"short": "aaaa"}, "short: must have 3 or fewer characters"),
        ({"short": "b"}, "short: must match the pattern a"),
        ({"few": []}, "few: must have 1 or more entries, not 0"),
        ({"few": [1, 2, 3]}, "few: must have 2 or fewer entries, not 3"),
        ({"given": "x"}, "given: must be a whole number"),
        ({}, "given: is missing"),
    ],
)
def test_every_kind_of_bound_has_plain_words(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Bounded.model_validate({"given": 1, **values} if values else {})
    assert str(first_problem(caught.value)) == told


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
    with pytest.raises(ConfigError, check=telling("table.key=value", field="--set", value=text)):
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
    with pytest.raises(ConfigError, check=telling("1", field="run.seed", value=2)):
        parse_overrides(["run.seed=1", "growth.twin=true", "run.seed=2"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("growth.margin", float("inf"), "finite number"),
        ("policy.deadline_s", float("nan"), "finite number"),
        ("policy.deadline_s", 1e300, "must be 100000000 or less"),
        ("run.seed", 2**53, f"use at most {2**53 - 1}"),
        pytest.param("run.seed", 16**5000, f"use at most {2**53 - 1}", id="huge"),
        ("growth.parameter_budget", 1e308, "use a size between 1e-100 and 1e+100"),
        ("growth.margin", 5e-324, "use a size between"),
        ("run.threads", 513, "must be 512 or less"),
        ("growth.managers", 513, "must be 512 or less"),
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


def test_adoption_means_joint_training_and_whole_rounds_and_refuses_what_contradicts_it() -> None:
    config, grafting = (load_config(None, {"growth.entry": entry}) for entry in ("adopt", "graft"))
    assert (config.growth.isolate_until, grafting.growth.isolate_until) == ("none", "blended")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    for key, value in (("growth.isolate_until", "blended"), ("growth.probe_steps", 40)):
        with pytest.raises(ConfigError, match=f"{key} = {value!r}: .* with growth.entry=adopt"):
            load_config(None, {"growth.entry": "adopt", key: value})


def test_a_config_cannot_be_changed_after_it_was_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().run.seed = 1


# -- from Python -------------------------------------------------------------------------------------------------


def test_a_config_from_python_takes_tables_and_dotted_keys() -> None:
    dotted: dict[str, Any] = {"run.epochs": 3, "growth.margin": 0.5}
    table: dict[str, Any] = {"epochs": 3}
    assert RunConfig(run=table, **{"growth.margin": 0.5}) == RunConfig(**dotted) == load_config(None, dotted)
    assert table == {"epochs": 3}
    assert RunConfig(run=table | {"epochs": 2}, **{"run.epochs": 3}).run.epochs == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"run": {"sed": 3}}, "run.sed = 3: no such key; the nearest is run.seed"),
        ({"run.sed": 3}, "run.sed = 3: no such key; the nearest is run.seed"),
        ({"epochs": 3}, "epochs = 3: no such key; the nearest is run.epochs"),
        ({"run": {"epochs": "two"}}, "run.epochs = 'two': must be a whole number"),
        ({"run": 3}, "run = 3: must be a table"),
        ({"run": RunConfig().run, "run.epochs": 2}, "this is a table; write it as [run], in Python as a dict"),
        (
            {"growth": {"margin": "x", "stack": -1, "twn": 1}, "run": {"epochs": 0}},
            "run.epochs = 0: must be 1 or more; also wrong: growth.margin, growth.stack and growth.twn",
        ),
    ],
)
def test_a_wrong_config_from_python_is_told_as_on_the_command_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(**given)
    assert str(caught.value).endswith(told)
    assert "\n" not in str(caught.value)


def test_a_config_of_a_run_directory_stays_a_matter_of_its_reader() -> None:
    assert RunConfig.model_validate_json(RunConfig().model_dump_json()) == RunConfig()
    with pytest.raises(ValidationError):
        RunConfig.model_validate_json('{"run": {"sed": 3}}')
