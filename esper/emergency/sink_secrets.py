"""Reads the secrets of a webhook from files or environment variables: its address, its token, and the address of its
proxy. No error shows them.
"""

from __future__ import annotations

from collections.abc import Mapping

from esper.emergency.settings import WebhookSinkConfig
from esper.errors import ConfigError
from esper.ground.addresses import MOST_BYTES, is_one_word, wrong_address, wrong_proxy
from esper.ground.secret_file import read_secret

MAKE = "write it with: (umask 077; cat > FILE)"


def read_address(sink: WebhookSinkConfig, environment: Mapping[str, str]) -> str:
    """Return the address of a webhook.

    Raises:
        ConfigError: the address is missing, its file is not safe, or it is not a valid address.
    """
    address = _read(sink.name, "url", sink.url_file, sink.url_env, environment)
    assert address is not None, "the settings have one place for it"
    if mend := wrong_address(address):
        raise ConfigError(*_place(sink.name, "url", sink.url_file, sink.url_env), mend)
    return address


def read_token(sink: WebhookSinkConfig, environment: Mapping[str, str]) -> str | None:
    """Return the token of a webhook. None: the webhook has no token. Raises: ConfigError, as in `read_address`."""
    token = _read(sink.name, "token", sink.token_file, sink.token_env, environment)
    if token is not None and not is_one_word(token):
        mend = "its content is no token: use visible ASCII characters without spaces, in one line"
        raise ConfigError(*_place(sink.name, "token", sink.token_file, sink.token_env), mend)
    return token


def read_proxy(sink: WebhookSinkConfig, environment: Mapping[str, str]) -> str | None:
    """Return the address of a webhook's proxy. None: the webhook uses no proxy. Raises: ConfigError, as in
    `read_address`.
    """
    if sink.proxy is not None:
        return sink.proxy
    proxy = _read(sink.name, "proxy", sink.proxy_file, sink.proxy_env, environment)
    if proxy is not None and (mend := wrong_proxy(proxy, is_secret=True)):
        raise ConfigError(*_place(sink.name, "proxy", sink.proxy_file, sink.proxy_env), mend)
    return proxy


def _place(sink: str, key: str, file: str | None, variable: str | None) -> tuple[str, str | None]:
    """Return the config key of a secret, and the path or the name of the variable at this key."""
    suffix = "env" if file is None else "file"
    return f"emergency.sinks.{sink}.{key}_{suffix}", variable if file is None else file


def _read(sink: str, key: str, file: str | None, variable: str | None, environment: Mapping[str, str]) -> str | None:
    field, _ = _place(sink, key, file, variable)
    if file is not None:
        content = read_secret(field, file, most_bytes=MOST_BYTES, make=MAKE)
        return content.decode("latin-1")  # latin-1 decodes every byte; characters outside ASCII are refused later
    if variable is None:
        return None
    if variable not in environment or not environment[variable].strip():
        raise ConfigError(field, variable, f"set this environment variable, or use {key}_file")
    return environment[variable].strip()
