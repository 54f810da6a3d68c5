"""In which order Python walks through a set of texts: the same in every process of a run, as far as esper starts them.

Python mixes a secret into the hash of text, another one in each process, unless `PYTHONHASHSEED` is set when it starts.
"""

from __future__ import annotations

import ctypes
import os
import sys

VARIABLE = "PYTHONHASHSEED"
OURS = 0
"""The seed of processes that esper starts, where the user has set none."""
_AT_START = os.environ.get(VARIABLE)
"""Later changes have no effect on this process."""
SECRET_BYTES = 24


def hash_seed() -> int | None:
    """The seed that this process was started with; None: a random one, which no other process can be given."""
    given = _given()
    return given if given is not None and _secret() == _secret_of(given) else None


def _given() -> int | None:
    """The number that the variable had at the start; None: it had none. `python -R` ignores it, as `-I` and `-E` do."""
    return int(_AT_START) if _AT_START is not None and _AT_START.isdigit() else None


def _secret() -> bytes:
    """What Python mixes into the hash of text in this process."""
    return bytes((ctypes.c_ubyte * SECRET_BYTES).in_dll(ctypes.pythonapi, "_Py_HashSecret"))


def _secret_of(seed: int) -> bytes:
    """What Python mixes in where it obeys a seed: zeros for 0, else bytes of a generator, as in bootstrap_hash.c."""
    secret, state = bytearray(), seed
    while seed and len(secret) < SECRET_BYTES:
        state = (state * 214013 + 2531011) % 2**32
        secret.append(state >> 16 & 0xFF)
    return bytes(secret) or bytes(SECRET_BYTES)


def text_hash() -> int:
    """Equal in two processes of one version of Python if and only if their sets of texts have the same order."""
    return hash("esper")


def fix_hash_seed() -> None:
    """Start this program again with a fixed seed, unless the user has fixed one. To be called before all else.

    The process keeps its id, directory, open streams and ignored signals. A Python that does not obey the variable
    (`-I`, `-E`, `-R`) cannot be given a seed and goes on as it is.
    """
    if _given() is None and not sys.flags.ignore_environment and sys.executable:
        os.environ[VARIABLE] = str(OURS)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def seed_for_actors() -> int:
    """The seed of processes that this one has started."""
    own = hash_seed()
    return own if own is not None else OURS
