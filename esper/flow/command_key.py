"""The key that signs the commands of a run: random for each run, or read from a file that several machines share.

Neither the key nor the path of its file is written to the run directory.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat

from esper.config.joined import RunConfig
from esper.errors import ConfigError

FIELD = "ray.command_key_file"
LEAST_BYTES, MOST_BYTES = 32, 4096
"""A key of fewer bytes than a SHA-256 can be guessed more easily than the signature. A larger file is not a key."""
MODE = 0o600
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
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(FIELD, path, f"there is no such file; {MAKE}") from error
    except OSError as error:
        linked = error.errno == errno.ELOOP
        mend = "it is a symbolic link; name the file itself" if linked else f"it cannot be read: {error.strerror}"
        raise ConfigError(FIELD, path, mend) from error
    try:
        _check_owner(path, os.fstat(descriptor))
        content = os.read(descriptor, MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > MOST_BYTES:
        raise ConfigError(FIELD, path, f"it has more than {MOST_BYTES} bytes, so it is not a key; {MAKE}")
    key = content.strip()
    if not key:
        raise ConfigError(FIELD, path, f"it is empty; {MAKE}")
    if len(key) < LEAST_BYTES:
        raise ConfigError(FIELD, path, f"it has {len(key)} bytes, and a key needs at least {LEAST_BYTES}; {MAKE}")
    return key


def _check_owner(path: str, found: os.stat_result) -> None:
    """Raises: ConfigError: it is not a regular file of this user that nobody else may use."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(FIELD, path, "it is not a regular file")
    if found.st_uid != os.geteuid():
        mend = f"it belongs to user {found.st_uid}, and this process is of user {os.geteuid()}; use a file of your own"
        raise ConfigError(FIELD, path, mend)
    mode = stat.S_IMODE(found.st_mode)
    if mode != MODE:
        raise ConfigError(FIELD, path, f"its mode is {mode:04o}, and must be {MODE:04o}; use chmod {MODE:o} on it")


def without_key_file(config: RunConfig) -> RunConfig:
    """Return the config as the run directory may show it."""
    return config.model_copy(update={"ray": config.ray.model_copy(update={"command_key_file": None})})


def word_without_key_file(word: str) -> str:
    """Return a word of a command line in the form in which it may be written into the run directory."""
    before, named, _ = word.partition(FIELD)
    return f"{before}{FIELD}=..." if named else word
