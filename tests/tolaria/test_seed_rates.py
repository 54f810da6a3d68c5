"""The optimizer of one seed keeps its moments and its schedule while other seeds come and go, and takes a factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing import DRAWN, RUN
from training import live_trainer, make_plan, make_survey

from esper.errors import DependencyViolationError
from esper.ground.tensors import state_digest
from esper.leyline.reports import RatePlan, RemovePlan
from esper.setup.survey import Survey
from esper.tolaria.optim import seed_rate
from esper.tolaria.trainer import Trainer

Graft = Callable[[Trainer, str, int], None]
ADAM: dict[str, Any] = {"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.01)}


@pytest.fixture
def survey() -> Survey:
    return make_survey(**ADAM)


@pytest.fixture
def graft(survey: Survey) -> Graft:
    """Graft another seed at the trainer's present step."""

    def make(trainer: Trainer, seed_id: str, ordinal: int) -> None:
        ids = {"seed_id": seed_id, "command_id": f"graft {seed_id}", "ordinal": ordinal}
        trainer.apply(make_plan(survey, step=trainer.step, **ids), DRAWN)

    return make


@pytest.fixture
def grown(survey: Survey, graft: Graft) -> Trainer:
    """A host at step 30 with a seed "first" since step 20."""
    trainer = live_trainer(survey)
    trainer.train_to(20)
    graft(trainer, "first", 0)
    trainer.train_to(30)
    return trainer


def scale(trainer: Trainer, seed_id: str, factor: float, name: str = "scale") -> None:
    plan = RatePlan(command_id=name, run_id=RUN, generation=1, seed_id=seed_id, fence=1, rate_scale=factor)
    trainer.apply(plan, {})


def remove(trainer: Trainer, seed_id: str) -> None:
    ids = {"command_id": f"remove {seed_id}", "run_id": RUN, "generation": 1, "seed_id": seed_id, "fence": 1}
    trainer.apply(RemovePlan(**ids), {})


def rate(trainer: Trainer, seed_id: str) -> float:
    found: float = trainer.snapshot().seed_optimizers[seed_id]["param_groups"][0]["lr"]
    return found


def moments(state: dict[str, Any]) -> dict[str, str]:
    """Digest of every tensor of an optimizer's state."""
    return {
        f"{number}/{name}": state_digest({"": value})
        for number, values in state["state"].items()
        for name, value in values.items()
    }


def optimizers(trainer: Trainer) -> dict[str, dict[str, str]]:
    snapshot = trainer.snapshot()
    return {name: moments(state) for name, state in {"": snapshot.optimizer, **snapshot.seed_optimizers}.items()}


# -- moments -----------------------------------------------------------------------------------------------------


def test_a_graft_and_a_cull_leave_the_moments_of_host_and_other_seeds_as_they_are(grown: Trainer, graft: Graft) -> None:
    before = optimizers(grown)
    assert all(before.values())
    graft(grown, "second", 1)
    assert optimizers(grown) == {**before, "second": {}}
    grown.train_to(34)
    before = optimizers(grown)
    remove(grown, "second")
    assert optimizers(grown) == {name: bits for name, bits in before.items() if name != "second"}


def more_steps(state: dict[str, Any]) -> None:
    state["state"][0]["step"] = torch.tensor(11.0)  # 10 were taken since the graft


def no_moments(state: dict[str, Any]) -> None:
    state["state"] = {}


def rate_as_text(state: dict[str, Any]) -> None:
    state["param_groups"][0]["lr"] = "0.01"


def other_parameters(state: dict[str, Any]) -> None:
    state["param_groups"][0]["params"].reverse()


@pytest.mark.parametrize("spoil", [more_steps, no_moments, rate_as_text, other_parameters])
def test_a_seeds_state_that_is_not_its_own_is_refused(
    grown: Trainer, survey: Survey, spoil: Callable[[dict[str, Any]], None]
) -> None:
    snapshot = grown.snapshot()
    spoil(snapshot.seed_optimizers["first"])
    fresh = live_trainer(survey)

    def load() -> None:
        fresh.become(snapshot)
        fresh.try_update()

    with pytest.raises(DependencyViolationError, match="a stored optimizer state does not belong"):
        load()


# -- schedules and factors ---------------------------------------------------------------------------------------


def course(survey: Survey, step: int, start: int = 20) -> float:
    """The rate that the last step before `step` had, by the formula alone."""
    total = survey.fence_steps[-1]
    return 0.01 * seed_rate(step - 1, start, total, 3)


def test_a_seeds_schedule_goes_on_while_others_come_and_go(grown: Trainer, survey: Survey, graft: Graft) -> None:
    graft(grown, "second", 1)
    grown.train_to(35)
    assert rate(grown, "first") == pytest.approx(course(survey, 35), rel=1e-12)
    assert rate(grown, "second") == pytest.approx(course(survey, 35, start=30), rel=1e-12)
    remove(grown, "second")
    grown.train_to(40)
    assert rate(grown, "first") == pytest.approx(course(survey, 40), rel=1e-12)


def test_a_factor_holds_from_the_next_step_on_for_its_seed_alone(grown: Trainer, survey: Survey, graft: Graft) -> None:
    graft(grown, "second", 1)
    scale(grown, "first", 0.25)
    assert rate(grown, "first") == pytest.approx(course(survey, 30), rel=1e-12)
    grown.train_to(31)
    assert rate(grown, "first") == pytest.approx(0.25 * course(survey, 31), rel=1e-12)
    assert rate(grown, "second") == pytest.approx(course(survey, 31, start=30), rel=1e-12)
    scale(grown, "first", 2.0, "again")
    remove(grown, "second")
    grown.train_to(32)
    assert rate(grown, "first") == pytest.approx(2.0 * course(survey, 32), rel=1e-12)


def test_with_a_factor_of_0_a_seed_stays_as_it_is(grown: Trainer) -> None:
    scale(grown, "first", 0.0)
    before = {name: tensor for name, tensor in grown.snapshot().tensors.items() if name.endswith("weight")}
    grown.train_to(33)
    after = grown.snapshot().tensors
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if "seed" in name}
    assert same


def test_a_factor_is_restored_in_another_host_and_taken_back_in_the_same(grown: Trainer, survey: Survey) -> None:
    before = grown.snapshot()
    undisturbed = live_trainer(survey)
    undisturbed.become(before)
    scale(grown, "first", 0.25)
    scaled = grown.snapshot()
    grown.train_to(40)

    other = live_trainer(survey)
    other.become(scaled)
    other.train_to(40)
    assert other.weights_sha256() == grown.weights_sha256()

    undisturbed.train_to(40)
    grown.become(before)
    grown.train_to(40)
    assert grown.weights_sha256() == undisturbed.weights_sha256() != other.weights_sha256()


def test_a_factor_for_a_seed_that_is_not_there_is_refused(grown: Trainer) -> None:
    before = grown.snapshot().topology
    with pytest.raises(DependencyViolationError, match="not in this host"):
        scale(grown, "second", 0.5)
    assert grown.snapshot().topology == before
