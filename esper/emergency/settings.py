"""Settings of the emergency queue and of the sinks to which it delivers signals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from esper.errors import ConfigError
from esper.ground.addresses import wrong_proxy
from esper.ground.suggest import existing_names
from esper.leyline.base import Seconds, Settings

CONDUCTOR = "conductor"
"""Name of the conductor as a subscriber. Every queue has it."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
"""Name of a sink: a subscriber of the queue, and a label of counters and events."""
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
"""Name of an environment variable."""
File = Annotated[str, Field(min_length=1, max_length=4096)]


class FileSinkConfig(Settings):
    """[[emergency.sinks]] of kind "file": appends each signal to a file, as one line of JSON."""

    name: Name
    kind: Literal["file"]
    path: File | None = None
    """Absolute path of the file. None: `RUN/emergency/signals.jsonl`."""
    total_s: Seconds = 10.0
    """Time limit in seconds for one signal."""

    @field_validator("path")
    @classmethod
    def _is_absolute(cls, path: str | None) -> str | None:
        if path is not None and not PurePath(path).is_absolute():
            raise ValueError("give an absolute path, so that a resume from another folder writes the same file")
        return path


class WebhookSinkConfig(Settings):
    """[[emergency.sinks]] of kind "webhook": sends each signal by an HTTP POST request.

    The address and the token are secrets, and so is the address of a proxy with a user name. The config contains only
    the path of a file of mode 0600, or the name of an environment variable.
    """

    name: Name
    kind: Literal["webhook"]
    url_file: File | None = None
    url_env: Variable | None = None
    token_file: File | None = None
    token_env: Variable | None = None
    proxy: File | None = None
    """Address of the site's HTTP proxy, such as "http://proxy.example:3128", without a user name. None, and no
    `proxy_file` or `proxy_env`: no proxy. Proxies of the environment, such as HTTP_PROXY, are never used."""
    proxy_file: File | None = None
    proxy_env: Variable | None = None
    connect_s: Seconds = 5.0
    """Time limit in seconds for a connection."""
    read_s: Seconds = 10.0
    """Time limit in seconds between two parts of the answer, and between two parts of the request."""
    total_s: Seconds = 20.0
    """Time limit in seconds for the whole request and its answer."""

    @field_validator("proxy")
    @classmethod
    def _is_no_secret(cls, proxy: str | None, info: ValidationInfo) -> str | None:
        """Raises: ConfigError: the config must not contain this address. It may be a secret, so it is not shown."""
        if proxy is not None and (mend := wrong_proxy(proxy, is_secret=False)):
            name = [info.data["name"]] if "name" in info.data else []  # it is left out if it is wrong, too
            raise ConfigError(".".join(["emergency.sinks", *name, "proxy"]), "...", mend)
        return proxy

    @model_validator(mode="after")
    def _has_one_place_for_each_secret(self) -> Self:
        if (self.url_file is None) == (self.url_env is None):
            raise ValueError("give either url_file or url_env, so that the address is in neither config nor run")
        if self.token_file is not None and self.token_env is not None:
            raise ValueError("give either token_file or token_env")
        if [self.proxy, self.proxy_file, self.proxy_env].count(None) < 2:
            raise ValueError("give only one of proxy, proxy_file and proxy_env")
        return self


SinkConfig = Annotated[FileSinkConfig | WebhookSinkConfig, Field(discriminator="kind")]


def _keys(kind: object) -> Mapping[str, object]:
    """Return the keys of a sink of this kind. If the kind does not exist, return the keys of all kinds."""
    match kind:
        case "file":
            return FileSinkConfig.model_fields
        case "webhook":
            return WebhookSinkConfig.model_fields
        case _:
            return FileSinkConfig.model_fields | WebhookSinkConfig.model_fields


def _mend(key: object, known: Iterable[str]) -> str:
    if key in ("url", "token"):
        return f"it is a secret: write it into a file of mode 0600, and give the path as {key}_file (or use {key}_env)"
    return f"no such key; {existing_names(str(key), known)}"


class EmergencyConfig(Settings):
    """[emergency]"""

    capacity: Annotated[int, Field(ge=32, le=4096)] = Field(
        1024, description="largest number of signals in the queue; the last 16 places are for HALT"
    )
    cap_per_minute: Annotated[int, Field(ge=1, le=10_000)] = Field(
        60, description="largest number of signals below HALT that a sink gets in a minute; more wait in the queue"
    )
    attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        8, description="number of failed attempts after which a signal is a dead letter of that sink"
    )
    first_retry_s: Seconds = Field(1.0, description="longest wait in seconds before the second attempt; it doubles")
    longest_retry_s: Seconds = Field(
        300.0, validate_default=True, description="longest wait in seconds before any attempt"
    )
    calm_fences: Annotated[int, Field(ge=1)] = Field(
        3, description="fences after the last CONSERVATIVE signal until seeds may germinate again"
    )
    drain_s: Annotated[float, Field(ge=0, le=1e8)] = Field(
        10.0, description="seconds that the end of a run waits for sinks; later signals go out after a resume"
    )
    sinks: tuple[SinkConfig, ...] = Field(
        (), strict=False, max_length=16, description="where signals are sent, as [[emergency.sinks]]: file, webhook"
    )

    @field_validator("sinks", mode="before")
    @classmethod
    def _have_known_keys(cls, sinks: object) -> object:
        """Raises: ConfigError: a sink has an unknown key. The value is not shown, because it may be a secret."""
        for number, sink in enumerate(sinks) if isinstance(sinks, list | tuple) else ():
            for key in sink if isinstance(sink, dict) else ():
                if key not in (known := _keys(sink.get("kind"))):
                    raise ConfigError(f"emergency.sinks[{number}].{key}", "...", _mend(key, known))
        return sinks

    @field_validator("sinks")
    @classmethod
    def _have_names_of_their_own(cls, sinks: tuple[SinkConfig, ...]) -> tuple[SinkConfig, ...]:
        names = [CONDUCTOR, *(sink.name for sink in sinks)]
        if taken := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name {taken[0]!r} is taken; give each sink a name of its own")
        return sinks

    @field_validator("longest_retry_s")
    @classmethod
    def _is_the_longer_wait(cls, longest_s: float, info: ValidationInfo) -> float:
        if "first_retry_s" in info.data and longest_s < info.data["first_retry_s"]:
            raise ValueError(f"must be {info.data['first_retry_s']} or more, as first_retry_s is")
        return longest_s
