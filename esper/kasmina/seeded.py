"""Random numbers by key: inside the context they follow the key, outside nothing has happened. It draws none itself."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(key: int, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Seed the global generators of python, numpy and torch (CPU, and CUDA for `devices`) with `key`.

    Afterwards all of them are in the state they had before, also when the body raised.
    """
    cuda = sorted({device.index for device in devices if device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(key)  # 130 times faster than torch.manual_seed
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(key)
            random.seed(key)
            np.random.seed(key & 0xFFFFFFFF)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
