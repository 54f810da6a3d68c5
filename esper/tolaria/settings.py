"""The settings of training: seed, length, threads, device. If a key is absent, the value of the task is used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from esper.leyline.base import PositiveInt, Settings

MOST_THREADS = 512
"""Largest allowed number of torch threads. The number does not depend on the machine's cores, because a run may be
resumed on another machine."""


class TrainConfig(Settings):
    """[run]"""

    seed: Annotated[int, Field(ge=0)] = Field(0, description="determines every random number of the run")
    epochs: PositiveInt | None = Field(None, description="passes over the training data; default: the task's")
    batch_size: PositiveInt | None = Field(None, description="samples per optimizer step; default: the task's")
    round_steps: PositiveInt | None = Field(
        None,
        description="optimizer steps of a round; default: the task's, else a 15th of the run (a 60th above 600 steps)",
    )
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] = Field(
        1, description="number of torch threads; another number gives other bits, so it is fixed for a run"
    )
    device: str = Field("cpu", description="device of the host, by its name in torch")
    compile: bool = Field(False, description="whether torch.compile compiles the model; other bits than without")
    compile_backend: Literal["inductor", "aot_eager"] = Field(
        "inductor",
        description="backend of torch.compile; inductor needs a C++ compiler, aot_eager is no faster",
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest global gradient norm; default: no clipping"
    )
    dir: str | None = Field(None, description="run directory; must be absent or empty; default: a new one under runs/")
