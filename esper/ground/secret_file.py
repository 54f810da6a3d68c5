"""Reads a secret from a file that only the present user may read. Other files are refused."""

from __future__ import annotations

import errno
import os
import stat

from esper.errors import ConfigError

MODE = 0o600


def read_secret(field: str, path: str, *, most_bytes: int, make: str) -> bytes:
    """Return the content of the file, at least one byte, without white space at its ends. No error shows the content.

    Args:
        field: Config key of the path, for errors.
        most_bytes: A larger file is refused.
        make: Advice on how to write the file, for errors, such as "make a key with: ...".

    Raises:
        ConfigError: the file is missing, unreadable, a symbolic link or not a regular file; it belongs to another user;
            its mode is not 0600; or its content is empty or too long.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(field, path, f"there is no such file; {make}") from error
    except OSError as error:
        linked = error.errno == errno.ELOOP
        mend = "it is a symbolic link; name the file itself" if linked else f"it cannot be read: {error.strerror}"
        raise ConfigError(field, path, mend) from error
    try:
        _check_owner(field, path, os.fstat(descriptor))
        content = os.read(descriptor, most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise ConfigError(field, path, f"it has more than {most_bytes} bytes, which is too long; {make}")
    if not content.strip():
        raise ConfigError(field, path, f"it is empty; {make}")
    return content.strip()


def _check_owner(field: str, path: str, found: os.stat_result) -> None:
    """Raises: ConfigError: the file is not regular, belongs to another user, or has a mode other than 0600."""
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(field, path, "it is not a regular file")
    if found.st_uid != os.geteuid():
        mend = f"it belongs to user {found.st_uid}, and this process is of user {os.geteuid()}; use a file of your own"
        raise ConfigError(field, path, mend)
    mode = stat.S_IMODE(found.st_mode)
    if mode != MODE:
        raise ConfigError(field, path, f"its mode is {mode:04o}, and must be {MODE:04o}; use chmod {MODE:o} on it")
