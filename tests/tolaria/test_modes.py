"""Frozen submodules stay in evaluation mode in training, after evaluation, in forks and after a restore."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from growing import DRAWN
from torch import Tensor, nn
from training import live_trainer, make_plan, make_survey

from esper.testing import TinyHost
from esper.tolaria.trainer import Trainer


class NormedHost(TinyHost):
    """The tiny host with batch norm and dropout before its slot."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))

    def forward(self, x_BC: Tensor) -> Tensor:
        scores: Tensor = super().forward(self.before(x_BC))
        return scores


class Keeping(NormedHost):
    """Overrides `train()`, so that batch norm never leaves evaluation mode."""

    def train(self, mode: bool = True) -> Keeping:
        super().train(mode)
        self.before[0].eval()
        return self


class FreezingInForward(NormedHost):
    """Puts its batch norm into evaluation mode at every call."""

    def forward(self, x_BC: Tensor) -> Tensor:
        self.before[0].eval()
        return super().forward(x_BC)


def norm_frozen() -> nn.Module:
    host = NormedHost()
    host.before[0].eval()
    return host


def branch_frozen() -> nn.Module:
    host = NormedHost()
    host.before.eval()
    return host


def all_but_the_head_frozen() -> nn.Module:
    host = NormedHost().eval()
    host.head.train()
    return host


def none_frozen() -> nn.Module:
    return NormedHost()


def loaded_in_evaluation_mode() -> nn.Module:
    return NormedHost().eval()


FROZEN = {
    norm_frozen: (False, True),
    branch_frozen: (False, False),
    all_but_the_head_frozen: (False, False),
    Keeping: (False, True),
    FreezingInForward: (False, True),
    none_frozen: (True, True),
    loaded_in_evaluation_mode: (True, True),
}
"""Factory -> whether batch norm and dropout train."""


def trained(trainer: Trainer) -> tuple[bool, bool]:
    """Whether batch norm and dropout were in training mode in the last three steps."""
    norm, seen = trainer.host.before[0], []
    handle = trainer.host.before[1].register_forward_hook(lambda module, _args, _output: seen.append(module.training))
    batches = int(norm.num_batches_tracked)
    trainer.train_to(trainer.step + 3)
    handle.remove()
    assert len(set(seen)) == 1
    assert int(norm.num_batches_tracked) - batches in (0, 3)
    return int(norm.num_batches_tracked) > batches, seen[0]


@pytest.mark.parametrize("model", FROZEN)
def test_a_submodule_trains_or_is_frozen_all_along(model: Callable[[], nn.Module]) -> None:
    survey = make_survey(model=model)
    live, fork = (live_trainer(survey) for _ in range(2))
    assert trained(live) == FROZEN[model]
    live.sample_losses("gate", 0)
    assert trained(live) == FROZEN[model]
    fork.sample_losses("gate", 0)
    fork.become(live.snapshot())
    assert trained(fork) == FROZEN[model]
    live.train_to(fork.step)
    assert live.weights_sha256() == fork.weights_sha256()


def test_an_overridden_train_is_called_each_time_the_mode_changes() -> None:
    called: list[bool] = []

    class Merging(TinyHost):
        def train(self, mode: bool = True) -> Merging:
            called.append(mode)
            super().train(mode)
            return self

    trainer = live_trainer(make_survey(model=Merging))
    called.clear()
    trainer.sample_losses("gate", 0)
    assert called == [False, True]


def test_the_dry_run_sees_samples_mixed_only_by_a_norm_that_trains() -> None:
    def independent(model: Callable[[], nn.Module]) -> bool:
        return make_survey(model=model).specs[0].samples_independent

    assert [independent(model) for model in (norm_frozen, Keeping, none_frozen)] == [True, True, False]


def test_a_seed_trains_also_where_the_root_of_its_host_is_frozen() -> None:
    survey = make_survey(model=all_but_the_head_frozen)
    trainer = live_trainer(survey)
    trainer.graft(make_plan(survey, step=0), DRAWN)
    stack, _ = trainer._editor._stacks["body"]
    assert not trainer.host.training
    assert all(module.training for module in stack.seeds[0].modules())
