"""Keyed random streams. Every random number of a run depends only on run seed, purpose and place."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_python: Any = random._inst  # this base class has no public name; `random.seed` is a method of its subclass
_seed_python: Callable[[int], None] = super(random.Random, _python).seed
_seed_numpy: Callable[[int], None] = np.random.mtrand._rand.seed  # this generator has no public name
_seed_torch: Callable[[int], object] = torch.default_generator.manual_seed
_WITH_CUDA = torch._C._has_cuda  # also on AMD


def stream_key(run_seed: int, purpose: str, *place: int | str) -> int:
    """Return a 63-bit key for one use of randomness.

    Two uses that differ in purpose or place have different streams, because the key is a cryptographic hash of both.

    Source: SHA-256 as a counter-mode key derivation (the idea of Salmon et al. 2011, doi:10.1145/2063384.2063405).
    """
    text = "\x1f".join((str(run_seed), purpose, *map(str, place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, purpose: str, *place: int | str) -> np.random.Generator:
    """Return a new numpy generator for one use."""
    return np.random.Generator(np.random.Philox(key=stream_key(run_seed, purpose, *place)))


def seed_process(run_seed: int, purpose: str, *place: int | str) -> None:
    """Seed the global generators of python, numpy and torch in this process for one use. The generators of CUDA are
    seeded, too, if CUDA is in use.
    """
    seed_by(stream_key(run_seed, purpose, *place))


def seed_by(key: int) -> None:
    """Seed the same generators with a key that `stream_key` returned."""
    seed_on_cpu(key)
    if _WITH_CUDA and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.manual_seed_all(key)


def seed_on_cpu(key: int) -> None:
    """Seed the global generators of python, numpy and torch's CPU with one key.

    torch's default generator is seeded directly, because `torch.manual_seed` also looks for accelerators and takes a
    hundred times as long. The generators of Python and numpy are seeded without `random.seed` and `np.random.seed`,
    because those functions first check types, which takes time.
    """
    _seed_python(key)
    _python.gauss_next = None
    try:
        _seed_numpy(key & 0xFFFFFFFF)
    except TypeError:  # the user's code has set another kind of generator
        np.random.seed(key & 0xFFFFFFFF)
    _seed_torch(key)


Streams = tuple[Any, Any, Tensor]
"""States of python's, numpy's and torch's global generators."""


def streams() -> Streams:
    """Return the states of the global CPU generators of this process."""
    return random.getstate(), np.random.get_state(), torch.default_generator.get_state()


def changed_streams(before: Streams, after: Streams) -> tuple[str, ...]:
    """Return the names of the generators whose states differ: "python", "numpy", "torch"."""
    numpy = all(np.array_equal(one, other) for one, other in zip(before[1], after[1], strict=True))
    same = {"python": before[0] == after[0], "numpy": numpy, "torch": torch.equal(before[2], after[2])}
    return tuple(name for name, unchanged in same.items() if not unchanged)


def restore_streams(states: Streams) -> None:
    """Restore the global generators to the states that `streams` returned."""
    python, numpy, own = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.default_generator.set_state(own)
