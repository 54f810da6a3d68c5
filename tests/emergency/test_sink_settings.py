"""The sinks of a config: what is refused, in which words, and that no error shows a secret."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import esper
from esper.config.joined import RunConfig, as_toml, load_config
from esper.emergency.sinks import check_sinks
from esper.errors import ConfigError
from esper.testing import telling, tiny_config, tiny_task

SECRET = "https://hooks.example/T0/B0/secret"
WEBHOOK = {"name": "hook", "kind": "webhook", "url_file": "/x"}


@pytest.mark.parametrize(
    ("sink", "field", "named"),
    [
        ({"name": "a", "kind": "fil"}, "emergency.sinks", ("kind", "file", "webhook")),
        ({"name": "a"}, "emergency.sinks", ("kind", "missing")),
        ({"name": "a", "kind": ["file"]}, "emergency.sinks", ("kind",)),
        ({"name": "a b", "kind": "file"}, "emergency.sinks", ("name", "pattern")),
        ({"name": "conductor", "kind": "file"}, "emergency.sinks", ("conductor", "taken")),
        ({"name": "a", "kind": "file", "path": "here.jsonl"}, "emergency.sinks", ("path", "absolute")),
        ({"name": "a", "kind": "file", "url_file": "/x"}, "emergency.sinks[0].url_file", ("no such key",)),
        ({"name": "a", "kind": "webhook"}, "emergency.sinks", ("url_file", "url_env")),
        ({**WEBHOOK, "url_env": "X"}, "emergency.sinks", ("url_file", "url_env")),
        ({**WEBHOOK, "token_file": "/y", "token_env": "Y"}, "emergency.sinks", ("token_file", "token_env")),
        ({**WEBHOOK, "proxy": "http://p:1", "proxy_env": "P"}, "emergency.sinks", ("proxy_file", "proxy_env")),
        ({**WEBHOOK, "proxy": "socks5://p:1"}, "emergency.sinks.hook.proxy", ("http://HOST:PORT",)),
        ({**WEBHOOK, "proxy": "http://p:0"}, "emergency.sinks.hook.proxy", ("port",)),
        ({**WEBHOOK, "proxy": "http://p/path"}, "emergency.sinks.hook.proxy", ("http://HOST:PORT",)),
        ({**WEBHOOK, "total_s": 0.0}, "emergency.sinks", ("total_s", "above 0")),
        ({**WEBHOOK, "total": 1.0}, "emergency.sinks[0].total", ("total_s",)),
        ({**WEBHOOK, "url_env": "A=B"}, "emergency.sinks", ("url_env", "pattern")),
        (7, "emergency.sinks", ("table",)),
    ],
)
def test_a_sink_that_cannot_be_used_is_refused_by_name(sink: Any, field: str, named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, check=telling(*named, field=field)):
        RunConfig(emergency={"sinks": [sink]})


@pytest.mark.parametrize("kind", ["webhook", "file", "webhok", None])
@pytest.mark.parametrize("key", ["url", "token", "urlfile", "header"])
def test_a_secret_in_the_config_is_refused_and_not_shown(kind: str | None, key: str) -> None:
    sink = {"name": "hook", "kind": kind, key: SECRET, "url_file": "/x"}
    with pytest.raises(ConfigError, check=telling(value="...")) as refused:
        RunConfig(emergency={"sinks": [sink]})
    assert "secret" not in str(refused.value).replace("it is a secret", "")


def test_a_user_of_a_proxy_in_the_config_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, check=telling("proxy_file", field="emergency.sinks.hook.proxy", value="...")) as no:
        RunConfig(emergency={"sinks": [{**WEBHOOK, "proxy": "http://me:hush@proxy:1"}]})
    assert "hush" not in str(no.value)


def test_two_sinks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, check=telling("hook", "taken", field="emergency.sinks")):
        RunConfig(emergency={"sinks": [WEBHOOK, WEBHOOK]})


def test_waits_that_shrink_are_refused() -> None:
    with pytest.raises(ConfigError, check=telling("first_retry_s", field="emergency.longest_retry_s", value=1.0)):
        RunConfig(emergency={"first_retry_s": 9.0, "longest_retry_s": 1.0})


def test_sinks_survive_toml_json_and_the_command_line() -> None:
    config = RunConfig(emergency={"sinks": [{"name": "log", "kind": "file", "path": "/a/ü.jsonl"}, WEBHOOK]})
    assert RunConfig.model_validate(tomllib.loads(as_toml(config))) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    (first, second) = config.emergency.sinks
    assert (first.name, second.name, second.kind) == ("log", "hook", "webhook")
    assert load_config(overrides={"emergency.sinks": [WEBHOOK]}).emergency.sinks == (second,)


# -- what sinks need outside of the config -----------------------------------------------------------------------

NOT_MADE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no folder": ("there is no such folder", Path.rmdir),
    "a folder": ("not a regular file", lambda folder: (folder / "log").mkdir()),
    "a pipe": ("not a regular file", lambda folder: os.mkfifo(folder / "log")),
    "a link": ("not a regular file", lambda folder: (folder / "log").symlink_to(folder / "other")),
}


@pytest.mark.parametrize(("mend", "make"), NOT_MADE.values(), ids=NOT_MADE)
def test_a_file_that_cannot_be_written_is_refused(mend: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder")
    path = str(tmp_path / "folder" / "log")
    config = RunConfig(emergency={"sinks": [{"name": "log", "kind": "file", "path": path}]})
    with pytest.raises(ConfigError, check=telling(mend, field="emergency.sinks.log.path", value=path)):
        check_sinks(config.emergency.sinks, {})


def test_a_run_whose_sink_cannot_be_made_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    sinks = [{"name": "hook", "kind": "webhook", "url_env": "ESPER_TEST_NOT_SET"}]
    config = tiny_config(run__dir=str(tmp_path / "run"), emergency__sinks=sinks)
    with pytest.raises(ConfigError, check=telling(field="emergency.sinks.hook.url_env")):
        esper.run(tiny_task(), config)
    assert list(tmp_path.iterdir()) == []
