"""The whole config of a run. It is read from a TOML file, changed by `table.key=value` overrides, and checked."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, ValidationError, ValidationInfo, model_validator

from esper.config.checkpoint_settings import CheckpointConfig
from esper.config.supervision_settings import FailurePolicy, SupervisionConfig
from esper.emergency.settings import EmergencyConfig
from esper.errors import ConfigError, shortened
from esper.faults import FaultSpec, check
from esper.ground.problems import Problem, problems
from esper.ground.suggest import existing_names, listed, nearest
from esper.kasmina.settings import NONE_WORD, GrowthConfig
from esper.leyline.base import Seconds, Settings
from esper.tamiyo.settings import PolicyConfig, RiskConfig
from esper.telemetry.settings import TelemetryConfig
from esper.tolaria.settings import TrainConfig

MOST_BYTES = 2**20
"""Largest size of a config file in bytes. The whole default config has a few kilobytes."""


class RayConfig(Settings):
    """[ray]"""

    start_deadline_s: Seconds = Field(60.0, description="time limit in seconds for the start of all actors together")
    collective_timeout_s: Seconds = Field(
        60.0, description="an actor that shows no progress for this many seconds is ended"
    )
    publish_deadline_s: Seconds = Field(
        2.0, description="seconds for which a publisher of an emergency signal waits while the actor is restarted"
    )
    command_key_file: str | None = Field(
        None,
        min_length=1,
        description="file of mode 0600 with the key that signs commands, at least 32 bytes; not set: a random key",
    )


class RunConfig(Settings):
    """All settings of a run, with defaults. A config cannot be changed after it is made. `esper config` prints each of
    them.

    ```python
    esper.RunConfig(run={"epochs": 3, "dir": "runs/first"}, growth={"margin": 0.05})
    esper.RunConfig(**{"run.epochs": 3, "growth.margin": 0.05})  # by dotted key, as in `--set` and `esper.resume`
    ```

    Raises:
        ConfigError: a key does not exist, or its value is wrong.
    """

    run: TrainConfig = Field(default_factory=TrainConfig)
    growth: GrowthConfig = Field(default_factory=GrowthConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    risk: RiskConfig = Field(default_factory=RiskConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    emergency: EmergencyConfig = Field(default_factory=EmergencyConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
    ray: RayConfig = Field(default_factory=RayConfig)
    supervision: SupervisionConfig = Field(default_factory=SupervisionConfig)
    failure_policy: FailurePolicy = Field(default_factory=FailurePolicy)
    faults: tuple[FaultSpec, ...] = Field(
        (), strict=False, description="faults to inject on purpose; see docs/faults.md"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, given: Any, check_tables: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Accept tables and dotted keys from Python. JSON comes from a run directory. The code that reads the directory
        reports errors in the JSON.

        Raises:
            ConfigError: a key does not exist, or its value is wrong.
        """
        if info.mode != "python":
            return check_tables(given)
        try:
            return check_tables(_tables(given) if isinstance(given, dict) else given)
        except ValidationError as error:
            raise _explain(error) from error


def load_config(
    file: Path | None = None, overrides: Mapping[str, Any] | None = None, faults: Path | None = None
) -> RunConfig:
    """Load a config file, if a path is given. Apply the overrides, which have dotted keys, and add the faults of
    another file.

    Raises:
        ConfigError: a key or value is wrong. The error names the key, the value and the mend.
    """
    tables = _read("--config", file) if file is not None else {}
    if faults is not None:
        read = _read("--faults", faults)
        stray = sorted(read.keys() - {"faults"})
        if stray:
            raise ConfigError("--faults", str(faults), f"write [[faults]]; {stray[0]!r} does not belong here")
        tables["faults"] = read.get("faults", [])
    for key, value in (overrides or {}).items():
        if not _is_dotted(key):
            raise ConfigError(key, value, f"no such key; {_existing(key)}")
        if key.startswith("faults."):
            raise ConfigError(key, value, "faults are an array of tables; write [[faults]] in a file, see --faults")
    config = RunConfig.model_validate({**tables, **(overrides or {})})
    check(config.faults)
    return config


def _is_dotted(key: str) -> bool:
    """Return whether a key consists of a known table and an entry. The entry may be unknown; a later check of the table
    reports unknown entries.
    """
    table, dot, _ = key.partition(".")
    return bool(dot) and table in RunConfig.model_fields


def _tables(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a config. The config is given by tables, by dotted keys, or by both. A dotted key replaces
    the entry of a table.

    Raises:
        ConfigError: a dotted key belongs to a table whose value is not a dict.
    """
    tables = {key: value for key, value in given.items() if not _is_dotted(key)}
    for key in filter(_is_dotted, given):
        table, _, name = key.partition(".")
        entries = tables.setdefault(table, {})
        if not isinstance(entries, dict):
            raise ConfigError(table, entries, f"this is a table; write it as [{table}], in Python as a dict")
        tables[table] = {**entries, name: given[key]}
    return tables


def flattened(config: RunConfig) -> dict[str, Any]:
    """Return all values of all tables, by dotted key."""
    tables = ((name, value) for name, value in config if isinstance(value, BaseModel))
    return {f"{table}.{name}": getattr(value, name) for table, value in tables for name in _fields(value)}


def description(key: str) -> str:
    """Return the description of a config key, which names its default."""
    table, _, name = key.partition(".")
    settings: BaseModel = getattr(RunConfig(), table)
    found = type(settings).model_fields[name].description
    assert found is not None, "each key has a description"
    return found


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Return the values of all `--set` options, by dotted key.

    Raises:
        ConfigError: a text cannot be read, or a key is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, value = parse_override(text)
        add_override(found, key, value)
    return found


def add_override(overrides: dict[str, Any], key: str, value: object) -> None:
    """Raises: ConfigError: the key was given before."""
    if key in overrides:
        raise ConfigError(key, value, f"given twice, before as {shortened(overrides[key])}; give it once")
    overrides[key] = value


def parse_override(text: str) -> tuple[str, Any]:
    """Parse `table.key=value`. The value is read as TOML; if it is not TOML, it is a string.

    Raises:
        ConfigError: there is no `=`, or more than one line.
    """
    key, mark, raw = text.partition("=")
    if not mark or not key.strip():
        raise ConfigError("--set", text, "use table.key=value")
    if len(text.splitlines()) > 1:
        raise ConfigError("--set", text, "use one line; give each key its own --set")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:  # a bare word: `--set growth.isolate_until=none`
        return key.strip(), raw.strip()
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or thousands of brackets
        raise ConfigError("--set", text, f"the value cannot be read: {error}") from error


def as_toml(config: RunConfig) -> str:
    """Return a whole config as commented TOML, which `load_config` can read."""
    lines: list[str] = []
    for table, value in ((name, value) for name, value in config if isinstance(value, BaseModel)):
        lines += [f"[{table}]"]
        for name, info in type(value).model_fields.items():
            setting = getattr(value, name)
            lines.append(
                f"# {info.description}" + (f" ({_choices(info.annotation)})" if _choices(info.annotation) else "")
            )
            absent = f'{name} = "none"' if NONE_WORD in info.metadata else f"# {name} ="
            lines.append(absent if setting is None else f"{name} = {_toml(setting)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    """Return a value as TOML, in one line. Numbers and texts are written as in JSON."""
    if isinstance(value, BaseModel):
        return _toml(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        entries = ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items())
        return f"{{ {entries} }}" if entries else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _choices(annotation: object) -> str:
    options = [option for option in get_args(annotation) if isinstance(option, str)]
    return ", ".join(options)


def _read(option: str, file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(option, str(file), f"it is longer than {MOST_BYTES} bytes; give a file of TOML")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigError(option, str(file), f"cannot be read: {error.strerror}") from error
    # the file is not TOML or not UTF-8, or Python cannot read its numbers or nesting
    except (ValueError, RecursionError) as error:
        raise ConfigError(option, str(file), f"no TOML: {error}") from error


def config_keys() -> list[str]:
    """Return every key of a config, `table.name`, in the order of the tables."""
    return [
        f"{table}.{name}" for table, value in RunConfig() if isinstance(value, BaseModel) for name in _fields(value)
    ]


def _fields(table: BaseModel) -> Sequence[str]:
    return list(type(table).model_fields)


def _existing(key: str) -> str:
    """Return the mend for an unknown key. The mend names the nearest key. If no key is near, it names the keys of the
    table or, for an unknown table, all tables.
    """
    table, dot, _ = key.partition(".")
    near = nearest(key, config_keys()) if dot else nearest(key, [*RunConfig.model_fields, *config_keys()])
    if near is not None:
        return f"the nearest is {near}"
    mine = [known for known in config_keys() if known.startswith(f"{table}.")]
    return existing_names(key, mine) if mine else f"the tables are {listed(RunConfig.model_fields)}"


def _explain(error: ValidationError) -> ConfigError:
    """Return one line with the first problem and the keys of the other problems."""
    first, *more = problems(error)
    key, inner = _key_of(first), first.place[2:]
    if first.kind == "extra_forbidden" and not inner:
        mend = f"no such key; {_existing(key)}"
    else:
        mend = f"{'.'.join(map(str, inner))}: {first.message}" if inner else first.message
    others = {_key_of(one) for one in more} - {key}
    return ConfigError(key, first.value, f"{mend}; also wrong: {listed(sorted(others))}" if others else mend)


def _key_of(problem: Problem) -> str:
    """Return the dotted key of a problem, without the place inside its value."""
    return ".".join([part for part in problem.place if isinstance(part, str)][:2])
