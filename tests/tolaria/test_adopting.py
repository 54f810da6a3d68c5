"""A trainer that adopts a fork goes on with the fork's bits, and keeps what belongs to the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from growing import DRAWN
from training import RestlessHost, bits, live_trainer, make_plan, make_survey

from esper.errors import AdoptionMismatch, DependencyViolationError
from esper.leyline.reports import AdoptPlan, GraftPlan, RemovePlan
from esper.setup.survey import Survey
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.trainer import Trainer, never

LAST = 12
GONE = {"seed_id": "seed-2", "command_id": "command-10"}


@pytest.fixture
def survey() -> Survey:
    return make_survey(model=RestlessHost)


def of_fork(survey: Survey, live: Trainer, plan: GraftPlan) -> tuple[Trainer, HostSnapshot]:
    """A fork with a seed that has trained on from the live host, and its state."""
    fork = survey.trainer(plan.run_id, 1, "kasmina", never)
    fork.become(live.snapshot())
    fork.graft(plan, DRAWN)
    fork.train_to(LAST)
    return fork, fork.snapshot()


def adoption(plan: GraftPlan, live: Trainer, fork: Trainer, **changes: Any) -> AdoptPlan:
    """A sound plan, but for the changes."""
    ids = {"command_id": "command-2", "run_id": plan.run_id, "generation": 1, "seed_id": plan.seed_id, "fence": 2}
    digests = {"before_sha256": live.weights_sha256(), "after_sha256": fork.weights_sha256()}
    return AdoptPlan(graft=plan, **(ids | digests | changes))


def test_the_live_host_goes_on_with_the_bits_of_the_fork_and_keeps_what_belongs_to_the_run(survey: Survey) -> None:
    live, plan = live_trainer(survey), make_plan(survey, step=5, isolated=False)
    live.run_round(1, 5)
    fork, snapshot = of_fork(survey, live, plan)
    other = plan.model_copy(update={"seed_id": "seed-2", "command_id": "command-9"})
    live.apply(other, DRAWN)
    gone = RemovePlan(**{name: getattr(plan, name) for name in ("run_id", "generation", "fence")}, **GONE)
    live.apply(gone, {})
    trained = live.run_round(2, LAST)
    adopting = adoption(plan, live, fork)
    receipt = live.adopt(adopting, snapshot)
    assert (receipt.seed_id, receipt.step, receipt.parameters) == (plan.seed_id, LAST, fork.parameter_count())
    assert live.adopt(adopting, snapshot) == receipt
    kept = live.snapshot()
    assert (kept.fence, kept.best_round, kept.leaks) == (2, trained.train_loss, {plan.seed_id: ()})
    assert live.run_round(3, 20).losses == fork.train_to(20)
    own = {"fence", "best_round", "receipts"}
    mine, theirs = bits(live), bits(fork)
    assert {k: v for k, v in mine.items() if k not in own} == {k: v for k, v in theirs.items() if k not in own}
    assert [applied for applied, _ in live.snapshot().receipts.values()] == [other, gone, adopting]


@pytest.mark.parametrize(
    ("changes", "error", "unchanged"),
    [
        ({"before_sha256": "0" * 64}, AdoptionMismatch, True),
        ({"after_sha256": "0" * 64}, AdoptionMismatch, False),
        ({"generation": 2}, DependencyViolationError, True),
        ({"seed_id": "seed-9"}, DependencyViolationError, True),
    ],
)
def test_an_adoption_of_other_weights_or_of_another_plan_is_refused(
    survey: Survey, told: Callable[[], list[str]], changes: Any, error: type[Exception], unchanged: bool
) -> None:
    live, plan = live_trainer(survey), make_plan(survey, step=0, isolated=False)
    fork, snapshot = of_fork(survey, live, plan)
    live.train_to(LAST)
    before = bits(live)
    with pytest.raises(error):
        live.adopt(adoption(plan, live, fork, **changes), snapshot)
    assert (bits(live) == before) is unchanged
    assert told() == ["adoption_mismatch" if error is AdoptionMismatch else "dependency_violation"]


def test_a_fork_of_another_step_or_with_other_seeds_is_not_adopted(survey: Survey) -> None:
    live, plan = live_trainer(survey), make_plan(survey, step=0, isolated=False)
    fork, snapshot = of_fork(survey, live, plan)
    before = bits(live)
    with pytest.raises(DependencyViolationError, match="a fork of another host"):
        live.adopt(adoption(plan, live, fork), snapshot)
    assert bits(live) == before
    live.train_to(LAST)
    other = plan.model_copy(update={"isolated": True})
    with pytest.raises(DependencyViolationError, match="a fork of another host"):
        live.adopt(adoption(other, live, fork), snapshot)


@pytest.mark.filterwarnings("ignore")  # torch's own, as it compiles
def test_a_compiled_host_calls_the_seed_of_the_fork_that_it_adopted() -> None:
    plain = make_survey()
    compiled = plain.config.run.model_copy(update={"compile": True, "compile_backend": "eager"})
    survey = replace(plain, config=plain.config.model_copy(update={"run": compiled}))
    live, plan = live_trainer(survey), make_plan(survey, step=0, isolated=False)
    fork, snapshot = of_fork(survey, live, plan)
    live.train_to(LAST)
    live.adopt(adoption(plan, live, fork), snapshot)
    assert live.train_to(20) == fork.train_to(20)
    assert live.weights_sha256() == fork.weights_sha256()
    assert live.observe(3, {}).seeds[0].calls > 0
