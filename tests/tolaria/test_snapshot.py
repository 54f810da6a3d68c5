"""Snapshots: whichever way a host comes back, and from whatever it became, it has the bits and the future it had."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from growing import DRAWN, RUN
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import RestlessHost, bits, live_trainer, make_plan, make_survey

from esper.errors import DependencyViolationError, DivergenceUnrecoverable, StoreCorrupt, TaskError
from esper.kasmina.host.host_editor import SeedEditor
from esper.leyline.reports import GraftPlan, JoinPlan, RemovePlan
from esper.setup.survey import Survey
from esper.testing import telling, tiny_task
from esper.tolaria.memory_copy import MemoryCopy
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.snapshot_codec import (
    check_plain,
    check_task,
    foreign,
    from_plain,
    to_plain,
    topology_digest,
)
from esper.tolaria.trainer import Trainer


class Remembering(torch.optim.lr_scheduler.LRScheduler):
    """A rate that depends on a list which every step changes in place."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.past: list[float] = []
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.past.append(1 / (1 + len(self.past)))
        return [base * sum(self.past) / len(self.past) for base in self.base_lrs]


RECIPES: dict[str, dict[str, Any]] = {
    "Adam under a scheduler with a memory": {"scheduler": lambda optimizer, _: Remembering(optimizer)},
    "AdamW under MultiStepLR": {
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
        "scheduler": lambda optimizer, total: torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 22, total - 1]),
    },
    "SGD with momentum under OneCycleLR": {
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
        "scheduler": lambda optimizer, total: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total),
    },
}


def command(
    kind: type[JoinPlan | RemovePlan], seed_id: str, command_id: str, generation: int = 1
) -> JoinPlan | RemovePlan:
    return kind(command_id=command_id, run_id=RUN, generation=generation, seed_id=seed_id, fence=1)


@pytest.fixture
def grow() -> Callable[[Survey], Trainer]:
    """A host at step 20, in the middle of things: one seed joined, one isolated and in its ramp, one come and gone."""

    def make(survey: Survey) -> Trainer:
        trainer = live_trainer(survey)
        trainer.run_round(1, 8)
        trainer.apply(make_plan(survey, step=8, isolated=True, seed_id="first", command_id="c1"), DRAWN)
        trainer.apply(make_plan(survey, step=8, seed_id="gone", command_id="c2", ordinal=1), DRAWN)
        trainer.train_to(12)
        trainer.apply(command(RemovePlan, "gone", "c3"), {})
        trainer.apply(command(JoinPlan, "first", "c4"), {})
        trainer.train_to(18)
        second = {"step": 18, "isolated": True, "seed_id": "second", "command_id": "c5", "ordinal": 2}
        trainer.apply(make_plan(survey, "low_rank", **second), DRAWN)
        trainer.train_to(20)
        return trainer

    return make


# -- ways that a host can go astray, and ways back ---------------------------------------------------------------


def only_train(trainer: Trainer, plan: GraftPlan) -> None:
    del plan
    trainer.run_round(2, 27)


def join(trainer: Trainer, plan: GraftPlan) -> None:
    only_train(trainer, plan)
    trainer.apply(command(JoinPlan, "second", "c6"), {})
    trainer.train_to(29)


def graft(trainer: Trainer, plan: GraftPlan) -> None:
    trainer.apply(plan, DRAWN)
    only_train(trainer, plan)


def remove_first_and_graft(trainer: Trainer, plan: GraftPlan) -> None:
    trainer.apply(command(RemovePlan, "first", "c7"), {})
    graft(trainer, plan)


def remove_all(trainer: Trainer, plan: GraftPlan) -> None:
    trainer.apply(command(RemovePlan, "second", "c6"), {})
    trainer.apply(command(RemovePlan, "first", "c7"), {})
    only_train(trainer, plan)


def through_a_blob(snapshot: HostSnapshot) -> HostSnapshot:
    """As another process would get it from a checkpoint."""
    blob = io.BytesIO()
    torch.save(to_plain(snapshot), blob)
    blob.seek(0)
    return from_plain(torch.load(blob, weights_only=True))


def roll_back(trainer: Trainer, survey: Survey, kept: HostSnapshot) -> Trainer:
    del survey, kept
    assert trainer.roll_back(2) is not None
    return trainer


def become_in_place(trainer: Trainer, survey: Survey, kept: HostSnapshot) -> Trainer:
    del survey
    trainer.become(kept)
    return trainer


def restore_elsewhere(trainer: Trainer, survey: Survey, kept: HostSnapshot) -> Trainer:
    del trainer
    fresh = live_trainer(survey)
    fresh.restore(through_a_blob(kept), 2)
    return fresh


ASTRAY = [only_train, join, graft, remove_first_and_graft, remove_all]
FIRST_RECIPE, *OTHER_RECIPES = RECIPES


@pytest.mark.parametrize("back", [roll_back, become_in_place, restore_elsewhere])
@pytest.mark.parametrize(
    ("recipe", "astray"),
    [
        *((FIRST_RECIPE, astray) for astray in ASTRAY),
        *((recipe, remove_first_and_graft) for recipe in OTHER_RECIPES),
        *(
            pytest.param(recipe, astray, marks=pytest.mark.slow)
            for recipe in OTHER_RECIPES
            for astray in ASTRAY
            if astray is not remove_first_and_graft
        ),
    ],
)
def test_a_host_comes_back_to_the_bit_and_goes_on_as_if_it_had_never_been_away(
    grow: Callable[[Survey], Trainer], recipe: str, astray: Callable[..., None], back: Callable[..., Trainer]
) -> None:
    survey = make_survey(model=RestlessHost, **RECIPES[recipe])
    trainer, undisturbed = grow(survey), grow(survey)
    trainer.copy_state(1)
    kept = trainer.snapshot()
    before = bits(kept)
    assert before == bits(undisturbed)

    astray(trainer, make_plan(survey, step=20, seed_id="third", command_id="c9", ordinal=3))
    assert bits(trainer) != before
    returned = back(trainer, survey, kept)

    assert bits(returned) == before
    assert returned.train_to(45) == undisturbed.train_to(45)
    assert bits(returned) == bits(undisturbed)
    assert returned.weights_sha256() == undisturbed.weights_sha256()
    assert bits(kept) == before  # it stayed the caller's


def test_a_host_can_be_rolled_back_to_the_same_fence_again_and_again(grow: Callable[[Survey], Trainer]) -> None:
    survey = make_survey(model=RestlessHost)
    trainer = grow(survey)
    trainer.copy_state(1)
    before, losses = bits(trainer), []
    for generation in (2, 3, 4):
        losses.append(trainer.train_to(26))
        third = {"seed_id": "third", "command_id": "c9", "ordinal": 3, "generation": generation - 1}
        trainer.apply(make_plan(survey, step=26, **third), DRAWN)
        trainer.train_to(30)
        told = trainer.roll_back(generation)

        assert bits(trainer) == before
        assert (told.fence, told.step, told.generation) == (1, 20, generation)
        assert min(told.seconds, told.tensor_bytes) > 0
    assert losses[0] == losses[1] == losses[2]


def test_a_step_that_failed_leaves_nothing_behind_once_the_host_is_rolled_back() -> None:
    broken = []

    def loss(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        value = cross_entropy(output, target, reduction=reduction)
        return value * float("nan") if broken else value

    survey = make_survey(model=RestlessHost, loss=loss)
    trainer, undisturbed = live_trainer(survey), live_trainer(survey)
    undisturbed.train_to(20)
    trainer.train_to(10)
    trainer.copy_state(0)
    broken.append(True)
    with pytest.raises(DivergenceUnrecoverable):
        trainer.train_to(20)
    trainer.host.eval()  # as a measure that failed would leave it
    broken.clear()
    trainer.roll_back(2)

    trainer.train_to(20)
    assert bits(trainer) == bits(undisturbed)


def test_a_leak_that_was_seen_is_known_after_a_restore() -> None:
    survey = make_survey()
    trainer, fresh = live_trainer(survey), live_trainer(survey)
    trainer.apply(make_plan(survey, step=0, isolated=True), DRAWN)
    leaking = replace(trainer.snapshot(), leaks={"seed-1": ("head.weight",)})
    fresh.restore(through_a_blob(leaking), 1)

    (seen,) = fresh.observe(1, {}).seeds
    assert seen.isolation_leaks == ("head.weight",)
    fresh.become(trainer.snapshot())
    (seen,) = fresh.observe(1, {}).seeds
    assert seen.isolation_leaks is None  # nobody has looked
    fresh.train_to(1)
    (seen,) = fresh.observe(1, {}).seeds
    assert seen.isolation_leaks == ()


def test_what_was_seen_of_a_seed_is_counted_anew_after_a_rollback() -> None:
    survey = make_survey()
    trainer = live_trainer(survey)
    trainer.apply(make_plan(survey, step=0), DRAWN)
    trainer.train_to(5)
    trainer.copy_state(1)
    trainer.train_to(10)
    trainer.roll_back(2)
    trainer.train_to(7)

    (seen,) = trainer.observe(1, {}).seeds
    assert seen.calls == 2


def test_isolation_is_audited_at_the_same_steps_after_a_restore(
    grow: Callable[[Survey], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = make_survey(growth__isolation_audit_steps=3)
    trainer, fresh = grow(survey), live_trainer(survey)
    fresh.restore(trainer.snapshot(), 2)
    watched: dict[str, list[bool]] = {"trainer": [], "fresh": []}
    watch = SeedEditor.watch
    for name, one in (("trainer", trainer), ("fresh", fresh)):

        def noted(editor: SeedEditor, *how: Any, seen: list[bool] = watched[name]) -> None:
            seen.append(how[0])
            watch(editor, *how)

        monkeypatch.setattr(SeedEditor, "watch", noted)
        one.train_to(30)

    assert watched["fresh"] == watched["trainer"]
    assert any(watched["fresh"])


# -- generations -------------------------------------------------------------------------------------------------


def test_a_plan_of_the_generation_before_a_rollback_is_refused() -> None:
    survey = make_survey()
    trainer = live_trainer(survey)
    trainer.copy_state(0)
    trainer.roll_back(2)

    with pytest.raises(
        DependencyViolationError, check=telling(subject="plan for seed seed-1", missing="another generation's")
    ):
        trainer.apply(make_plan(survey, step=0), DRAWN)
    assert trainer.apply(make_plan(survey, step=0, generation=2), DRAWN).generation == 2


def test_a_rollback_to_a_generation_that_is_not_newer_is_refused() -> None:
    survey = make_survey()
    trainer = live_trainer(survey, generation=3)
    trainer.copy_state(0)
    trainer.train_to(5)
    before = bits(trainer)

    with pytest.raises(DependencyViolationError, match="an older generation"):
        trainer.roll_back(3)
    with pytest.raises(DependencyViolationError, check=telling(subject="restore", missing="an older generation")):
        trainer.restore(live_trainer(survey).snapshot(), 2)
    assert bits(trainer) == before


def test_without_anything_kept_a_rollback_says_so_and_changes_nothing() -> None:
    trainer = live_trainer(make_survey())
    trainer.train_to(5)
    before = bits(trainer)

    assert trainer.roll_back(2) is None
    assert bits(trainer) == before


# -- memory ------------------------------------------------------------------------------------------------------


def addresses(snapshot: HostSnapshot) -> Counter[int]:
    return Counter(tensor.data_ptr() for tensor in snapshot.all_tensors())


def of_the_host(trainer: Trainer) -> Counter[int]:
    """Addresses of the tensors of a host without seeds, and of its optimizer."""
    optimizer = trainer.parts()["task.optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return Counter(tensor.data_ptr() for tensor in (*trainer.host.parameters(), *trainer.host.buffers(), *moments))


def test_the_memory_copy_is_allocated_once_and_grows_by_what_a_seed_adds() -> None:
    survey = make_survey(model=RestlessHost)
    trainer, copy = live_trainer(survey), MemoryCopy()
    trainer.train_to(5)
    first = addresses(copy.copy_state(trainer.snapshot(), 1).snapshot)
    trainer.train_to(10)
    given = trainer.snapshot()
    assert addresses(copy.copy_state(given, 1).snapshot) == first
    assert not first & addresses(given)

    trainer.apply(make_plan(survey, step=10), DRAWN)
    trainer.train_to(15)
    grown = copy.copy_state(trainer.snapshot(), 1).snapshot
    assert first <= addresses(grown)
    assert bits(grown) == bits(trainer)


def test_a_rollback_uses_the_tensors_that_are_there() -> None:
    trainer = live_trainer(make_survey())
    trainer.train_to(5)
    trainer.copy_state(1)
    before = of_the_host(trainer)
    trainer.train_to(10)
    trainer.roll_back(2)

    assert of_the_host(trainer) == before


def test_a_host_is_rolled_back_to_before_its_first_step() -> None:
    survey = make_survey(**RECIPES["AdamW under MultiStepLR"])
    trainer, undisturbed = live_trainer(survey), live_trainer(survey)
    trainer.copy_state(0)
    trainer.train_to(5)
    trainer.roll_back(2)

    assert bits(trainer) == bits(undisturbed)
    assert trainer.train_to(10) == undisturbed.train_to(10)


# -- what does not fit -------------------------------------------------------------------------------------------


def without_alpha(snapshot: HostSnapshot) -> HostSnapshot:
    return replace(snapshot, tensors={k: v for k, v in snapshot.tensors.items() if not k.endswith("alpha")})


@pytest.mark.parametrize("other", [torch.zeros(1), torch.zeros(4, dtype=torch.float64)], ids=["shape", "type"])
def test_a_tensor_that_would_be_broadcast_or_converted_is_refused_before_anything_changes(other: Tensor) -> None:
    trainer = live_trainer(make_survey())
    trainer.train_to(5)
    snapshot, before = live_trainer(make_survey()).snapshot(), bits(trainer)
    snapshot.tensors["head.bias"] = other
    with pytest.raises(DependencyViolationError, check=telling("tensors differ", "head.bias", subject="snapshot")):
        trainer.become(snapshot)
    assert bits(trainer) == before


@pytest.mark.parametrize(
    ("task", "spoil", "told"),
    [
        ({"model": RestlessHost}, lambda snapshot: snapshot, ("tensors differ",)),
        ({}, without_alpha, ("tensors differ", "alpha")),
        ({}, lambda snapshot: replace(snapshot, seed_optimizers={}), ("seeds' optimizers differ",)),
        (RECIPES["AdamW under MultiStepLR"], lambda snapshot: snapshot, ("scheduler",)),
    ],
    ids=["another network", "without alpha", "without an optimizer", "a scheduler"],
)
def test_a_snapshot_that_does_not_fit_is_refused(
    task: dict[str, Any], spoil: Callable[[HostSnapshot], HostSnapshot], told: tuple[str, ...]
) -> None:
    survey = make_survey(**task)
    grown = live_trainer(survey)
    grown.apply(make_plan(survey, step=0), DRAWN)
    with pytest.raises(DependencyViolationError, check=telling(*told, subject="snapshot")):
        live_trainer(make_survey()).become(spoil(grown.snapshot()))


def test_a_state_that_torch_casts_on_loading_is_refused_and_not_kept_with_fewer_bits() -> None:
    class Precise(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter].setdefault("sum", torch.zeros_like(parameter, dtype=torch.float64))

    def precise(parameters: Any) -> torch.optim.Optimizer:
        return Precise(parameters, lr=0.1)

    with pytest.raises(TaskError, match="does not load as it was"):
        make_survey(optimizer=precise)
    survey = replace(make_survey(), task=tiny_task(optimizer=precise))
    trainer = live_trainer(survey)
    trainer.train_to(2)

    with pytest.raises(DependencyViolationError, match="does not load as it was"):
        live_trainer(survey).become(trainer.snapshot())


# -- the plain form ----------------------------------------------------------------------------------------------


def test_the_plain_form_holds_nothing_that_a_weights_only_load_would_refuse(grow: Callable[[Survey], Trainer]) -> None:
    snapshot = grow(make_survey(model=RestlessHost, **RECIPES["AdamW under MultiStepLR"])).snapshot()

    assert foreign(to_plain(snapshot)) is None
    assert bits(through_a_blob(snapshot)) == bits(snapshot)
    digests = {plan.weights_digest for plan, _ in snapshot.receipts.values() if isinstance(plan, GraftPlan)}
    assert snapshot.weights.keys() == digests
    assert len(to_plain(snapshot)["weights"]) == len(digests)  # once each, though topology and receipts both name them


@pytest.mark.parametrize("missing", ["step", "tensors", "weights", "receipts", "leaks"])
def test_a_plain_form_that_lacks_a_part_is_no_snapshot(missing: str) -> None:
    plain = to_plain(live_trainer(make_survey()).snapshot())
    for broken in ({k: v for k, v in plain.items() if k != missing}, plain | {missing: 3.5}):
        with pytest.raises(StoreCorrupt, check=telling(path="snapshot")):
            from_plain(broken)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [1, {"b": object()}]}, r"\.a\.1\.b: builtins\.object"),
        ({"lr": np.float64(0.1)}, r"\.lr: numpy\.float64"),
        ({"seen": {1, 2}}, r"\.seen: builtins\.set"),
        ([len], r"\.0: builtins\.builtin_function_or_method"),
        ({np.int64(3): 1}, r"numpy\.int64"),
        (torch.zeros(2, 2).to_sparse(), r"sparse"),
        (b"bytes", r"bytes"),
    ],
)
def test_what_is_not_plain_is_found_and_named_with_its_place(value: Any, named: str) -> None:
    with pytest.raises(TaskError, match=r"task\.optimizer = .*" + named):
        check_plain("task.optimizer", value)


def test_the_optimizers_and_schedulers_of_torch_are_plain() -> None:
    schedulers: list[Any] = [
        lambda o, _: torch.optim.lr_scheduler.StepLR(o, 3),
        lambda o, _: torch.optim.lr_scheduler.MultiStepLR(o, [3, 5]),
        lambda o, total: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=total),
        lambda o, _: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o, total: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, total_iters=3),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, total - 3),
            ],
            [3],
        ),
    ]
    optimizers: list[Any] = [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam]
    for optimizer in [*optimizers, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)]:
        for scheduler in schedulers:
            check_task(tiny_task(optimizer=optimizer, scheduler=scheduler), 20, [nn.Parameter(torch.zeros(1))])
    assert len(schedulers) == 5


def test_a_scheduler_whose_state_is_not_plain_is_refused_before_a_run_begins() -> None:
    class Decay:
        def __init__(self) -> None:
            self.shares = {0.5, 0.25}

        def __call__(self, step: int) -> float:
            return min(self.shares) if step else 1.0

    task = tiny_task(scheduler=lambda optimizer, _: torch.optim.lr_scheduler.LambdaLR(optimizer, Decay()))
    with pytest.raises(TaskError, check=telling("builtins.set", field="task.scheduler")):
        check_task(task, 20, [nn.Parameter(torch.zeros(1))])


def test_an_optimizer_whose_state_is_not_plain_is_refused_before_a_run_begins() -> None:
    class Noting(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["norms"] = np.zeros(3)

    with pytest.raises(TaskError, check=telling("numpy.ndarray", field="task.optimizer")):
        check_task(
            tiny_task(optimizer=lambda parameters: Noting(parameters, lr=0.1)), 20, [nn.Parameter(torch.zeros(1))]
        )


def test_the_digest_of_a_topology_knows_no_ids_and_sees_all_else() -> None:
    plan = make_plan(make_survey())
    renamed = plan.model_copy(update={"seed_id": "x", "command_id": "y", "run_id": "z", "generation": 9, "fence": 4})
    assert topology_digest([plan]) == topology_digest([renamed])
    changes: list[dict[str, Any]] = [
        {"isolated": True},
        {"ordinal": 3},
        {"start_step": 1},
        {"weights_digest": "0" * 64},
        {"blueprint_id": "norm"},
        {"rate_scale": 0.5},
    ]
    others = [plan.model_copy(update=change) for change in changes]
    digests = {topology_digest(one) for one in ([], [plan], [plan, plan], *([other] for other in others))}
    assert len(digests) == 3 + len(others)
