"""The key that signs the commands of a run. It is random, or read from a file that several machines share.

Neither the key nor the path of its file is written to the run directory.
"""

from __future__ import annotations

import secrets

from esper.config.joined import RunConfig
from esper.errors import ConfigError
from esper.ground.secret_file import read_secret

FIELD = "ray.command_key_file"
LEAST_BYTES, MOST_BYTES = 32, 4096
"""Bounds of the length of a key. A key that is shorter than a SHA-256 is easier to guess than a signature. A longer
file than the upper bound is not a key file."""
MAKE = "make a key with: (umask 077; openssl rand -hex 32 > FILE)"


def command_key(config: RunConfig) -> bytes:
    """Return the key of a run. The key is the content of `ray.command_key_file`, without white space at its ends. If
    this setting is absent, the key is random.

    Raises:
        ConfigError: the file is missing, unreadable, a symbolic link or not a regular file; it belongs to another user;
            its mode is not 0600; or its content is empty, too short, too long or one byte repeated.
    """
    path = config.ray.command_key_file
    return secrets.token_bytes(LEAST_BYTES) if path is None else _read(path)


def _read(path: str) -> bytes:
    key = read_secret(FIELD, path, most_bytes=MOST_BYTES, make=MAKE)
    if len(key) < LEAST_BYTES:
        raise ConfigError(FIELD, path, f"it has {len(key)} bytes, and a key needs at least {LEAST_BYTES}; {MAKE}")
    if len(set(key)) == 1:
        raise ConfigError(FIELD, path, f"each of its bytes is the same, which anyone can guess; {MAKE}")
    return key


def without_key_file(config: RunConfig) -> RunConfig:
    """Return the config without the path of the key file, for the run directory."""
    return config.model_copy(update={"ray": config.ray.model_copy(update={"command_key_file": None})})


def word_without_key_file(word: str) -> str:
    """Return a word of a command line for the run directory. If the word contains the path of the key file, the path is
    removed.
    """
    before, named, _ = word.partition(FIELD)
    return f"{before}{FIELD}=..." if named else word
