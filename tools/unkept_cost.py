"""Prints the CPU time of the search for unsaved state, as a share of a whole round. No checkpoint stores this state."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper import run
from esper.flow.line import Line
from esper.testing import Bands, TinyHost, tiny_config, tiny_task
from esper.tolaria.trainer import Trainer
from esper.tolaria.unkept import Unkept

WIDTH, BLOCKS = 512, 38


class LargeHost(nn.Module):
    """[B, 8] -> [B, 4] with 10 million parameters in 115 submodules below its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, WIDTH)
        layers = ((nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU()) for _ in range(BLOCKS))
        self.blocks = nn.ModuleList(nn.Sequential(*layer) for layer in layers)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x_BC: Tensor) -> Tensor:
        """Class scores, [B, 4]."""
        h = self.body(x_BC)
        for block in self.blocks:
            h = h + block(h)
        scores: Tensor = self.head(h)
        return scores


class Memo(TinyHost):
    """The tiny host with a table. The largest input so far determines the size of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.arange(4.0)

    def forward(self, x_BC: Tensor) -> Tensor:
        """Class scores, [B, 4]."""
        most = int(x_BC.abs().max())
        if most >= len(self.table):
            self.table = torch.arange(most + 1.0)
        return super().forward(x_BC)


class Stopwatch:
    """Measures the CPU seconds of all calls of a method."""

    def __init__(self, kind: type, name: str) -> None:
        self.seconds, self.calls, method = 0.0, 0, getattr(kind, name)
        setattr(kind, name, self._timed(method))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:  # Any: the method's result
        @wraps(method)
        def timed(*args: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*args)
            finally:
                self.seconds += time.thread_time() - began
                self.calls += 1

        return timed


def main() -> None:
    """Make four short runs, and print the figures."""
    print_a_suspect()
    round_, reads = Stopwatch(Line, "round"), (Stopwatch(Unkept, "begin_round"), Stopwatch(Unkept, "check"))
    for what, model, epochs, grows in (
        ("tiny host, grows", TinyHost, 10, True),
        ("tiny host, does not grow", TinyHost, 10, False),
        ("10 million parameters, does not grow", LargeHost, 2, False),
    ):
        for watch in (round_, *reads):
            watch.seconds, watch.calls = 0.0, 0
        with tempfile.TemporaryDirectory() as folder:
            run(
                tiny_task(model=model, epochs=epochs),
                tiny_config(run__dir=str(Path(folder) / "run"), growth__enabled=grows),
            )
        per_round = sum(watch.seconds for watch in reads) / round_.calls
        share = per_round / (round_.seconds / round_.calls)
        print(f"{what}: {per_round * 1e3:.2f} ms a round, {share:.2%} of it")


def print_a_suspect() -> None:
    """Measure the longest search at a fence.

    This is the search for a cache that only a sample of task.test has changed.
    """
    confirm, rounds = Stopwatch(Unkept, "_confirm"), Stopwatch(Trainer, "run_round")
    shards = {"train": Bands(1024, 1), "test": Bands(64, 3)}
    for bands in shards.values():
        bands.inputs.clamp_(-3.9, 3.9)
    shards["test"].inputs[3] = 9.0
    with tempfile.TemporaryDirectory() as folder:
        task = tiny_task(model=Memo, epochs=2, **shards)
        run(task, tiny_config(run__dir=str(Path(folder) / "run"), growth__enabled=False))
    per_round = (rounds.seconds - confirm.seconds) / rounds.calls
    once = confirm.seconds / confirm.calls
    print(f"a suspect: {once * 1e3:.1f} ms at one fence, {once / per_round:.1f} times the training of a round")


if __name__ == "__main__":
    main()
