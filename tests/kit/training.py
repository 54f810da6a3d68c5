"""Surveyed tiny tasks, their trainers, and plans as Kasmina makes them, for tests of several folders."""

from __future__ import annotations

from typing import Any

import torch
from growing import RUN, drawn_plan
from torch import Tensor, nn

from esper.ground.tensors import state_digest
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry
from esper.leyline.commands import BlendSpec
from esper.leyline.reports import GraftPlan
from esper.setup.survey import Survey, survey_of
from esper.testing import tiny_config, tiny_task
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.trainer import Trainer, never


class RestlessHost(nn.Module):
    """All that makes a copy hard: dropout, batch statistics, and a buffer that the state dict leaves out."""

    drift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)
        self.register_buffer("drift", torch.zeros(8), persistent=False)

    def forward(self, x_BC: Tensor) -> Tensor:
        h_BC = self.drop(self.norm(self.body(x_BC)))
        if self.training:
            self.drift.mul_(0.9).add_(h_BC.detach().mean(0), alpha=0.1)
        scores: Tensor = self.head(h_BC + self.drift)
        return scores


def make_survey(blueprints: BlueprintRegistry = BLUEPRINTS, **changes: Any) -> Survey:
    """The tiny task and config, surveyed. A key with "__" is the config's, any other a field of the task."""
    config = {key: value for key, value in changes.items() if "__" in key}
    task = {key: value for key, value in changes.items() if "__" not in key}
    return survey_of(tiny_task(**task), tiny_config(**config), blueprints)


def make_plan(survey: Survey, blueprint: str = "mlp", *, step: int = 20, **changes: Any) -> GraftPlan:
    """A sound plan for one seed in the slot "body"; any field may be another. Its weights are in `growing.DRAWN`."""
    course = {"blend": BlendSpec(mode="RESIDUAL", ramp_steps=4), "warmup_steps": 3, "step": step, "ordinal": 0}
    made = drawn_plan(survey.specs[0], blueprint, 1, blueprints=survey.blueprints, **course)
    return made.model_copy(update=changes)


def live_trainer(survey: Survey, generation: int = 1) -> Trainer:
    return survey.trainer(RUN, generation, "tolaria", never)


def bits(of: Trainer | HostSnapshot) -> dict[str, Any]:
    """All that a host's future depends on, tensors as their digests."""
    snapshot = of.snapshot() if isinstance(of, Trainer) else of
    return vars(snapshot.mapped(lambda tensor: state_digest({"": tensor})))
