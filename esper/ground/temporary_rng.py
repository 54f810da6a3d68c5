"""Seeds the global random generators inside a block, and restores them at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from esper.ground.random_streams import restore_streams, seed_on_cpu, streams


@contextmanager
def temporary_rng(key: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch (CPU, and CUDA for `devices`) with `key`.

    At the end of the block their states are restored, also if the block raised.
    """
    cuda = sorted({device.index for device in devices if device.type == "cuda"})
    before = streams()
    try:
        with torch.random.fork_rng(devices=cuda):
            seed_on_cpu(key)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(key)
            yield
    finally:
        restore_streams(before)
