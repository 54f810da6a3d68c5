"""In which order Python walks through a set of texts: the same in every process of a run, as far as esper starts them.

Python mixes a secret into the hash of text, another one in each process, unless `PYTHONHASHSEED` is set when it starts.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "PYTHONHASHSEED"
OURS = 0
"""The seed of processes that esper starts, where the user has set none."""
_AT_START = os.environ.get(VARIABLE)
"""Later changes have no effect on this process."""


def hash_seed() -> int | None:
    """The seed that this process was started with; None: a random one, which no other process can be given."""
    if not sys.flags.hash_randomization:
        return 0
    given = None if sys.flags.ignore_environment else _AT_START
    return int(given) if given is not None and given.isdigit() else None


def text_hash() -> int:
    """Equal in two processes of one version of Python if and only if their sets of texts have the same order."""
    return hash("esper")


def fix_hash_seed() -> None:
    """Start this program again with a fixed seed, unless the user has fixed one. To be called before all else.

    The process keeps its id, directory, open streams and ignored signals. A Python that reads no environment (`-I`,
    `-E`) cannot be given a seed and goes on as it is.
    """
    if hash_seed() is None and not sys.flags.ignore_environment and sys.executable:
        os.environ[VARIABLE] = str(OURS)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def seed_for_actors() -> int:
    """The seed of processes that this one has started."""
    own = hash_seed()
    return own if own is not None else OURS
