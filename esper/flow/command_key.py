"""The key that signs the commands of a run: random for each run, or read from a file that several machines share.

Neither the key nor the path of its file is written to the run directory.
"""

from __future__ import annotations

import secrets

from esper.config.joined import RunConfig
from esper.errors import ConfigError
from esper.ground.secret_file import read_secret

FIELD = "ray.command_key_file"
LEAST_BYTES, MOST_BYTES = 32, 4096
"""A key of fewer bytes than a SHA-256 can be guessed more easily than the signature. A larger file is not a key."""
MAKE = "make a key with: (umask 077; openssl rand -hex 32 > FILE)"


def command_key(config: RunConfig) -> bytes:
    """Return the key of a run: the content of `ray.command_key_file` without white space at its ends, else random.

    Raises:
        ConfigError: the file is missing, unreadable, a symbolic link or not a regular file; it belongs to another user;
            its mode is not 0600; or its content is empty, too short or too long.
    """
    path = config.ray.command_key_file
    return secrets.token_bytes(LEAST_BYTES) if path is None else _read(path)


def _read(path: str) -> bytes:
    key = read_secret(FIELD, path, most_bytes=MOST_BYTES, make=MAKE)
    if len(key) < LEAST_BYTES:
        raise ConfigError(FIELD, path, f"it has {len(key)} bytes, and a key needs at least {LEAST_BYTES}; {MAKE}")
    return key


def without_key_file(config: RunConfig) -> RunConfig:
    """Return the config as the run directory may show it."""
    return config.model_copy(update={"ray": config.ray.model_copy(update={"command_key_file": None})})


def word_without_key_file(word: str) -> str:
    """Return a word of a command line in the form in which it may be written into the run directory."""
    before, named, _ = word.partition(FIELD)
    return f"{before}{FIELD}=..." if named else word
