"""Makes the order in which Python iterates over sets of strings the same in all processes of a run.

Each process of Python mixes a random secret into the hash of strings, unless `PYTHONHASHSEED` is set at its start.
"""

from __future__ import annotations

import ctypes
import os
import sys

VARIABLE = "PYTHONHASHSEED"
OURS = 0
"""Hash seed of processes that esper starts. It is used if the user has set no seed."""
_AT_START = os.environ.get(VARIABLE)
"""The value of the variable at the start of the process. Later changes of the variable have no effect on the
process."""
SECRET_BYTES = 24


def hash_seed() -> int | None:
    """Return the hash seed of this process. None: the hash seed is random and cannot be passed to another process."""
    given = _given()
    return given if given is not None and _secret() == _secret_of(given) else None


def _given() -> int | None:
    """Return the number in `PYTHONHASHSEED` when the process started. None: the variable was not set. `python -R`, `-I`
    and `-E` ignore the variable.
    """
    return int(_AT_START) if _AT_START is not None and _AT_START.isdigit() else None


def _secret() -> bytes:
    """Return the secret that Python mixes into the hash of strings in this process."""
    return bytes((ctypes.c_ubyte * SECRET_BYTES).in_dll(ctypes.pythonapi, "_Py_HashSecret"))


def _secret_of(seed: int) -> bytes:
    """Return the secret of a seed: zeros for 0, else the bytes of a generator. Source: bootstrap_hash.c of CPython."""
    secret, state = bytearray(), seed
    while seed and len(secret) < SECRET_BYTES:
        state = (state * 214013 + 2531011) % 2**32
        secret.append(state >> 16 & 0xFF)
    return bytes(secret) or bytes(SECRET_BYTES)


def text_hash() -> int:
    """Return the hash of a fixed string. Two processes of one Python version with equal hashes iterate over sets of
    strings in the same order.
    """
    return hash("esper")


def fix_hash_seed() -> None:
    """Start this program again with a fixed seed, unless the user has fixed a seed. Call it before anything else.

    The id, the directory, the open streams and the ignored signals of the process do not change. If Python ignores the
    variable (`-I`, `-E`, `-R`), the process continues without a fixed seed.
    """
    if _given() is None and not sys.flags.ignore_environment and sys.executable:
        os.environ[VARIABLE] = str(OURS)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def seed_for_actors() -> int:
    """Return the hash seed for processes that this process starts."""
    own = hash_seed()
    return own if own is not None else OURS
