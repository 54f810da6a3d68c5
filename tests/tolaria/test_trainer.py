"""The trainer: a copy has its original's future to the bit, and neither looking nor failing changes a host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from growing import DRAWN, RUN
from span_files import ended
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from training import RestlessHost, bits, live_trainer, make_plan, make_survey

from esper.errors import (
    DependencyViolationError,
    DivergenceUnrecoverable,
    EmergencyStop,
    LossDeviceMismatch,
    TaskError,
)
from esper.ground.random_streams import generator, seed_process
from esper.ground.tensors import state_digest
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry, blueprint
from esper.kasmina.host import host_editor
from esper.leyline.evidence import ResetProbe
from esper.leyline.reports import GraftPlan, JoinPlan, RemovePlan
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.stages import Stage
from esper.setup.survey import Survey, survey_of
from esper.telemetry import Telemetry
from esper.testing import TinyHost, telling, tiny_config, tiny_task
from esper.tolaria.trainer import Trainer

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adam": {},
    "AdamW and cosine": {
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        "scheduler": lambda optimizer, total: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total),
    },
    "SGD with momentum and one cycle of rate and momentum": {
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
        "scheduler": lambda optimizer, total: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total),
    },
}


def same_command(plan: GraftPlan, kind: type[JoinPlan | RemovePlan], command_id: str) -> JoinPlan | RemovePlan:
    return kind(command_id=command_id, run_id=RUN, generation=1, seed_id=plan.seed_id, fence=plan.fence)


# -- the same bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("recipe", OPTIMIZERS)
def test_without_seeds_it_is_a_bare_pytorch_loop_to_the_bit(recipe: str, clip_norm: float | None) -> None:
    changed = {"run__clip_norm": clip_norm} if clip_norm is not None else {}
    survey = make_survey(model=RestlessHost, run__seed=3, **OPTIMIZERS[recipe], **changed)
    trainer, task = live_trainer(survey), survey.task
    assert len(task.train) == 1024  # 32 steps to the lap

    seed_process(3, "model")
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    scheduler = task.scheduler(optimizer, survey.total_steps) if task.scheduler else None
    losses, norms = [], []
    for step in range(40):
        lap, place = divmod(step * 32, 1024)
        chosen = generator(3, "order", lap).permutation(1024)[place : place + 32]
        seed_process(3, "step", step)
        pairs = [task.train[int(i)] for i in chosen]
        loss = cross_entropy(model(torch.stack([x for x, _ in pairs])), torch.stack([y for _, y in pairs]))
        optimizer.zero_grad()
        loss.backward()
        limit = clip_norm if clip_norm is not None else float("inf")
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())

    round_ = trainer.run_round(1, 40)
    assert list(round_.losses) == losses
    assert round_.gradient_norm == max(norms)
    assert clip_norm is None or max(norms) > clip_norm  # else nothing was clipped
    assert trainer.weights_sha256() == state_digest(model.state_dict())


def test_looking_at_a_host_does_not_change_what_becomes_of_it() -> None:
    survey = make_survey(model=RestlessHost)
    looked_at, left_alone = live_trainer(survey), live_trainer(survey)
    for trainer in (looked_at, left_alone):
        trainer.train_to(10)
        trainer.apply(make_plan(survey, step=10), DRAWN)
        trainer.train_to(15)
    before = bits(looked_at)

    looked_at.sample_losses("gate", 1)
    looked_at.shard_means("test")
    looked_at.activation("body")
    looked_at.observe(1, {})
    looked_at.weights_sha256()
    looked_at.compare_with_unseeded({"seed-0": "body"})

    assert bits(looked_at) == before
    assert looked_at.train_to(30) == left_alone.train_to(30)
    assert bits(looked_at) == bits(left_alone)


# -- rounds and measures -----------------------------------------------------------------------------------------


def test_a_round_says_what_it_measured_beside_the_best_before_it() -> None:
    trainer = live_trainer(make_survey())
    start, first, second, third = trainer.untrained(), *(trainer.run_round(n, 20 * n) for n in (1, 2, 3))

    assert (start.train_loss, start.gradient_norm, start.best_train_loss, start.losses) == (None, None, None, ())
    assert (first.fence, first.step, len(first.losses)) == (1, 20, 20)
    assert first.train_loss == sum(first.losses) / 20
    assert first.best_train_loss is None
    assert second.best_train_loss == first.train_loss
    assert third.best_train_loss == min(first.train_loss or 0, second.train_loss or 0)
    assert first.parameters == first.host_parameters == 8 * 8 + 8 + 8 * 4 + 4


def test_losses_are_measured_without_dropout_sample_by_sample() -> None:
    survey = make_survey(model=RestlessHost)
    trainer = live_trainer(survey)
    trainer.train_to(5)
    measured = trainer.sample_losses("gate", 3)

    host = copy.deepcopy(trainer.host).eval()
    (inputs, targets), *rest = survey.data.batches_of(survey.data.slice("gate", 3))
    assert not rest
    assert list(measured.losses) == cross_entropy(host(inputs), targets, reduction="none").tolist()
    assert trainer.host.training


def test_a_slots_output_is_seen_as_it_was_though_a_later_layer_writes_in_place() -> None:
    class Overwriting(TinyHost):
        def forward(self, x_BC: Tensor) -> Tensor:
            scores: Tensor = self.head(self.body(x_BC).relu_())
            return scores

    assert live_trainer(make_survey(model=Overwriting)).activation("body").min() < 0


def test_a_slot_that_the_next_forward_skips_is_told_by_its_name() -> None:
    trainer = live_trainer(make_survey())
    trainer.host.forward = lambda x_BC: trainer.host.head(x_BC)  # as a layer that is dropped by chance
    with pytest.raises(
        TaskError,
        check=telling(field="slot body", value="not called by the forward of 100 training batches from step 0 on"),
    ):
        trainer.activation("body")


@pytest.mark.parametrize("factory", [dict, lambda: [nn.Linear(8, 4)]])
def test_a_model_that_is_no_module_is_refused(factory: Callable[[], object]) -> None:
    with pytest.raises(TaskError, check=telling(field="task.model")):
        make_survey(model=factory)


def test_a_model_with_state_that_is_no_tensor_is_refused() -> None:
    class Counting(TinyHost):
        def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:
            return {**super().state_dict(*args, **keywords), "calls": 7}

    with pytest.raises(TaskError, check=telling("get_extra_state", field="task.model", value="calls")):
        make_survey(model=Counting)


# -- plans -------------------------------------------------------------------------------------------------------


def test_the_hosts_moments_and_schedule_never_notice_that_it_grew() -> None:
    survey = make_survey(**OPTIMIZERS["SGD with momentum and one cycle of rate and momentum"])
    grown, bare = live_trainer(survey), live_trainer(survey)
    for trainer in (grown, bare):
        trainer.train_to(20)
    before = bits(grown)

    grown.apply(make_plan(survey), DRAWN)

    assert bits(grown)["optimizer"] == before["optimizer"]
    assert grown.snapshot().scheduler == before["scheduler"]
    for trainer in (grown, bare):
        trainer.train_to(40)
    assert grown.snapshot().scheduler == bare.snapshot().scheduler
    groups = [trainer.snapshot().optimizer["param_groups"] for trainer in (grown, bare)]
    assert groups[0] == groups[1]
    assert list(grown.snapshot().seed_optimizers) == ["seed-1"]


def test_a_seed_that_is_removed_before_it_trained_leaves_no_trace() -> None:
    survey = make_survey(model=RestlessHost)
    grown, bare = live_trainer(survey), live_trainer(survey)
    for trainer in (grown, bare):
        trainer.train_to(20)
    plan = make_plan(survey)
    receipts = {}
    for applied in (plan, same_command(plan, RemovePlan, "command-2")):
        receipts[applied.command_id, applied.seed_id] = applied, grown.apply(applied, DRAWN)

    left = {"receipts": receipts, "weights": {plan.weights_digest: DRAWN[plan.weights_digest]}}
    assert bits(grown) == bits(bare) | left
    assert grown.train_to(40) == bare.train_to(40)
    assert bits(grown) == bits(bare) | left


def test_a_plan_is_applied_once() -> None:
    survey = make_survey()
    trainer = live_trainer(survey)
    trainer.train_to(20)
    plan = make_plan(survey)
    receipt = trainer.apply(plan, DRAWN)
    trainer.train_to(25)
    before = bits(trainer)

    assert trainer.apply(plan, DRAWN) == receipt
    assert bits(trainer) == before
    assert (receipt.step, receipt.parameters) == (20, trainer.parameter_count())
    assert receipt.parameters > survey.host_parameters


def test_a_known_id_with_another_body_is_refused_and_told(told: Callable[[], list[str]]) -> None:
    survey = make_survey()
    trainer = live_trainer(survey)
    trainer.apply(make_plan(survey, step=0), DRAWN)
    before = bits(trainer)

    with pytest.raises(
        DependencyViolationError, check=telling(subject="plan for seed seed-1", missing="another body under a known id")
    ):
        trainer.apply(make_plan(survey, step=0, isolated=True), DRAWN)
    assert bits(trainer) == before
    assert told() == ["dependency_violation"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"run_id": "another"}, "another run's"),
        ({"generation": 2}, "another generation's"),
        ({"weights_digest": "0" * 64}, "weights not given"),
        ({"slot": "nowhere"}, "target not in the host"),
        ({"slot": "head"}, "slot not known"),
        ({"command_id": ""}, "command id missing"),
    ],
)
def test_a_plan_that_is_refused_leaves_the_host_untouched(changed: dict[str, Any], why: str) -> None:
    survey = make_survey()
    trainer = live_trainer(survey)
    trainer.train_to(5)
    before = bits(trainer)

    with pytest.raises(DependencyViolationError, check=telling(missing=why)):
        trainer.apply(make_plan(survey, step=5, **changed), DRAWN)
    assert bits(trainer) == before
    assert not trainer.host.body._forward_hooks


# -- probes ------------------------------------------------------------------------------------------------------


def test_probing_gradients_leaves_no_gradient_and_no_changed_bit() -> None:
    survey = make_survey(model=RestlessHost)
    fork = live_trainer(survey)
    fork.train_to(20)
    fork.graft(make_plan(survey, isolated=True), DRAWN)
    before = bits(fork)

    probe = fork.probe_gradients("seed-1", 2)

    assert (probe.batches, probe.nonfinite, probe.reachable_host_parameters) == (2, 0, ())
    assert probe.norm > 0
    assert bits(fork) == before
    assert all(parameter.grad is None for parameter in fork.host.parameters())
    fork.remove("seed-1")
    bare = live_trainer(survey)
    assert fork.train_to(40) == bare.train_to(40)[20:]


class Leaky(nn.Module):
    """A seed that multiplies with a parameter which is not its own."""

    borrowed: Sequence[nn.Parameter] = ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, h_BC: Tensor) -> Tensor:
        out = h_BC * self.weight
        return out * self.borrowed[0].sum() if self.borrowed else out


def leaking() -> Survey:
    registry = BlueprintRegistry()

    @blueprint("leaky", kinds=(Kind.NC,), risk=0.5, registry=registry)
    def leaky(spec: SlotSpec) -> nn.Module:
        del spec
        return Leaky()

    registry.add(BLUEPRINTS.get("mlp"))
    return make_survey(registry, growth__isolation_audit_steps=4)


def test_a_seed_whose_gradient_reaches_the_host_is_found_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = leaking()
    fork = live_trainer(survey)
    fork.graft(make_plan(survey, "leaky", step=0, isolated=True), DRAWN)
    assert fork.probe_gradients("seed-1", 1).reachable_host_parameters == ()

    monkeypatch.setattr(Leaky, "borrowed", [fork.host.get_parameter("head.weight")])
    assert fork.probe_gradients("seed-1", 1).reachable_host_parameters == ("head.weight",)


class Strays(TinyHost):
    """Its outputs lie on another device in evaluation mode, once that is asked for."""

    strays = False

    def forward(self, x_BC: Tensor) -> Tensor:
        scores = super().forward(x_BC)
        return scores if self.training or not self.strays else scores.to("meta")


def test_evaluation_on_another_device_is_told_as_such_and_ends_in_training_mode(told: Callable[[], list[str]]) -> None:
    task = tiny_task(model=Strays, metrics={"first": lambda output, _target: output[:, 0]})
    live = live_trainer(survey_of(task, tiny_config()))
    live.host.strays = True
    for measure in (lambda: live.sample_losses("gate", 1), lambda: live.shard_means("test"), live.try_shards):
        with pytest.raises(LossDeviceMismatch, check=telling(outputs="meta", targets="cpu")):
            measure()
        assert live.host.training
    assert told() == ["loss_device_mismatch"] * 3
    live.train_to(2)


def test_layers_are_those_that_the_host_has_at_the_fence() -> None:
    survey = make_survey()
    live = live_trainer(survey)
    assert live.observe(2, {}).registered_layers == ("body", "head")
    live.host.spare = live.host.head
    assert live.observe(3, {}).registered_layers == ("body", "head", "spare")
    del live.host.body
    assert live.observe(4, {}).registered_layers == ("head", "spare")
    with pytest.raises(
        DependencyViolationError,
        check=telling("body", subject="plan for seed seed-1", missing="target not in the host"),
    ):
        live.apply(make_plan(survey, step=0), DRAWN)


def test_of_several_seeds_that_leak_each_is_found_and_one_that_does_not_is_blamed_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    survey = leaking()
    live = live_trainer(survey)
    for number, name in enumerate(("leaky", "mlp", "leaky")):
        plan = make_plan(survey, name, step=0, isolated=True)
        live.graft(plan.model_copy(update={"seed_id": f"seed-{number}", "ordinal": number}), DRAWN)
    monkeypatch.setattr(Leaky, "borrowed", [live.host.get_parameter("head.weight")])
    assert live.probe_gradients("seed-1", 1).reachable_host_parameters == ()
    live.train_to(1)
    leaks = {seen.seed_id: seen.isolation_leaks for seen in live.observe(1, {}).seeds}
    assert leaks == {"seed-0": ("head.weight",), "seed-1": (), "seed-2": ("head.weight",)}


def test_a_leak_in_the_live_host_is_told_once_and_seen_until_it_is_judged(
    monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    survey = leaking()
    live = live_trainer(survey)
    live.train_to(3)
    live.apply(make_plan(survey, "leaky", step=3, isolated=True), DRAWN)
    monkeypatch.setattr(Leaky, "borrowed", [live.host.get_parameter("head.weight")])
    live.train_to(6)  # step 4 is audited

    (seen,) = live.observe(1, {"seed-1": Stage.BLENDING}).seeds
    assert (seen.isolation_leaks, seen.stage, seen.calls) == (("head.weight",), Stage.BLENDING, 3)
    assert told() == ["isolation_violated"]
    (later,) = live.observe(2, {"seed-1": Stage.BLENDING}).seeds
    assert later.isolation_leaks == ("head.weight",)
    assert told() == ["isolation_violated"]


def test_only_the_forwards_of_audits_and_probes_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    survey, looked = leaking(), list[int]()
    live = live_trainer(survey)
    plan = make_plan(survey, step=0, isolated=True)
    live.apply(plan, DRAWN)
    monkeypatch.setattr(host_editor, "record_of", lambda *_: looked.append(live.step) or {})
    live.probe_gradients("seed-1", 1)
    live.train_to(6)
    live.apply(same_command(plan, JoinPlan, "command-2"), {})
    live.train_to(10)
    live.observe(1, {"seed-1": Stage.FOSSILIZED})
    live.train_to(13)

    # before and after the call, and in the backward pass: in the probe, then each 4 steps and in the last step of each
    # `train_to`
    assert looked == [step for step in (0, 0, 4, 5, 8, 9) for _ in range(4)]


class Picture(nn.Module):
    """The tiny task's inputs as pictures of 2 channels and 2 x 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, x_BC: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x_BC.unflatten(1, (2, 2, 2))).flatten(1))
        return scores


@pytest.mark.parametrize("isolated", [True, False])
def test_audits_change_no_bit_of_a_seed_that_uses_its_input_twice(isolated: bool) -> None:
    ends = []
    for audit_every in (1, 10**6):
        survey = make_survey(model=Picture, growth__isolation_audit_steps=audit_every)
        live = live_trainer(survey)
        live.apply(make_plan(survey, "squeeze_excite", step=0, isolated=isolated), DRAWN)
        live.run_round(1, 30)
        assert live.observe(1, {}).seeds[0].isolation_leaks == ()
        ends.append(bits(live))
    assert ends[0] == ends[1]


def test_the_last_step_before_a_fence_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = leaking()
    live = live_trainer(survey)
    live.apply(make_plan(survey, "leaky", step=0, isolated=True), DRAWN)
    live.train_to(1)
    monkeypatch.setattr(Leaky, "borrowed", [live.host.get_parameter("head.weight")])
    live.run_round(1, 3)  # without a fence, step 4 would be audited next
    (seen,) = live.observe(1, {"seed-1": Stage.BLENDING}).seeds
    assert seen.isolation_leaks == ("head.weight",)


# -- after a removal ---------------------------------------------------------------------------------------------


@pytest.fixture
def reset_host() -> Trainer:
    """A host from which a trained seed was removed."""
    survey = make_survey(model=RestlessHost)
    live = live_trainer(survey)
    plan = make_plan(survey, step=0)
    live.apply(plan, DRAWN)
    live.train_to(10)
    live.apply(same_command(plan, RemovePlan, "command-2"), {})
    return live


NOTHING_LEFT = ResetProbe(
    seed_left=False, optimizers_left=0, hooks_left=0, output_equal=True, flags_equal=True, names_equal=True
)


@pytest.mark.parametrize(
    ("leave", "found"),
    [
        (lambda _body: None, {}),
        (
            lambda body: body.register_forward_hook(lambda _module, _args, output: output + 1e-6),
            {"hooks_left": 1, "output_equal": False},
        ),
        (lambda body: body.weight.requires_grad_(False), {"flags_equal": False}),
        (lambda body: body.add_module("left", nn.Identity()), {"names_equal": False, "output_equal": False}),
        (
            lambda body: body.add_module("left", nn.Linear(2, 2)),
            {"names_equal": False, "output_equal": False, "flags_equal": False},
        ),
    ],
    ids=["nothing", "a hook", "a frozen parameter", "a module", "a module with tensors"],
)
def test_what_a_removed_seed_left_is_found(reset_host: Trainer, leave: Callable[[Any], None], found: Any) -> None:
    leave(reset_host.host.body)
    probes = reset_host.compare_with_unseeded({"seed-1": "body"})
    assert probes == {"seed-1": NOTHING_LEFT.model_copy(update=found)}


def test_a_seed_that_is_still_there_is_found() -> None:
    survey = make_survey()
    live = live_trainer(survey)
    live.apply(make_plan(survey, step=0), DRAWN)
    (probe,) = live.compare_with_unseeded({"seed-1": "body"}).values()
    assert (probe.seed_left, probe.optimizers_left, probe.hooks_left) == (True, 1, 0)


# -- what fails --------------------------------------------------------------------------------------------------


class Faulty:
    """A loss that is sound until it is told to break."""

    def __init__(self) -> None:
        self.breaks = ""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = cross_entropy(output, target)
        if self.breaks == "loss":
            return loss * float("nan")
        if self.breaks == "outputs":
            output.data[0, 0] = float("nan")
            return loss * float("nan")
        if self.breaks == "infinite loss":
            return loss - float("inf")
        if self.breaks == "gradient_norm":
            return loss + (output * 0).sum().sqrt()  # adds 0, and the root has no slope there
        return loss


def faulty(**changed: Any) -> tuple[Trainer, Faulty, Survey]:
    loss = Faulty()
    survey = make_survey(
        loss=loss, sample_loss=lambda output, target: cross_entropy(output, target, reduction="none"), **changed
    )
    return live_trainer(survey), loss, survey


@pytest.mark.parametrize("what", ["loss", "infinite loss", "gradient_norm", "outputs"])
def test_what_is_not_finite_stops_the_run_before_any_parameter_changes(
    telemetry: Telemetry, told: Callable[[], list[str]], what: str
) -> None:
    trainer, loss, survey = faulty()
    trainer.apply(make_plan(survey, step=0), DRAWN)
    trainer.train_to(7)  # the ramp has ended: alpha stays
    before = bits(trainer)
    loss.breaks = what

    with pytest.raises(DivergenceUnrecoverable) as caught:
        trainer.run_round(1, 20)
    assert (caught.value.step, caught.value.what) == (7, "gradient_norm" if what == "gradient_norm" else "loss")
    assert bits(trainer) == before
    assert told() == ["guard_tripped"]
    assert telemetry.counters.total("esper.guard.trips") == 1
    spans = [
        one for one in ended(telemetry.directory) if any(event["name"] == "guard_tripped" for event in one["events"])
    ]
    assert [one["name"] for one in spans] == ["esper step"]
    measured = caught.value.measured
    assert (measured["inputs_not_finite"], measured["outputs_not_finite"]) == (0, int(what == "outputs"))
    assert "last_losses" not in measured, "no step of this round ended"
    assert f"{int(what == 'outputs')} of {measured['outputs_values']} values of the outputs" in str(caught.value)


def test_a_halt_is_seen_at_the_first_step_boundary_and_no_step_is_begun() -> None:
    halted: list[str] = []
    trainer = make_survey().trainer(RUN, 1, "tolaria", lambda: bool(halted))
    trainer.train_to(3)
    before = bits(trainer)
    halted.append("from outside")

    with pytest.raises(EmergencyStop, check=telling("step 3", reason="", step=3)):
        trainer.run_round(1, 20)
    assert bits(trainer) == before


def step_spans(telemetry: Telemetry) -> list[tuple[int, bool]]:
    """(step, failed) of every step that has a span."""
    found = []
    for one in ended(telemetry.directory):
        told = {pair["key"]: pair["value"] for pair in one["attributes"]}
        if one["name"] == "esper step":
            found.append((int(told["step"]["intValue"]), one["status"]["code"] == 2))
    return found


@pytest.mark.parametrize("failing", [10, 13])
def test_one_step_in_five_has_a_span_and_one_that_fails_always(telemetry: Telemetry, failing: int) -> None:
    trainer, loss, _ = faulty(telemetry__step_every=5)
    trainer.train_to(failing)
    loss.breaks = "loss"

    with pytest.raises(DivergenceUnrecoverable):
        trainer.train_to(20)
    plain = [step for step in (0, 5, 10) if step != failing]
    assert step_spans(telemetry) == [*((step, False) for step in plain), (failing, True)]


def steps_in(telemetry: Telemetry) -> int:
    series = telemetry.metrics.snapshot().histograms["esper.step.duration"]
    return sum(sum(counts) for counts, _ in series.values())


def test_every_step_of_a_round_that_fails_is_in_the_histogram(telemetry: Telemetry) -> None:
    trainer = make_survey().trainer(RUN, 1, "tolaria", lambda: trainer.step == 12)
    trainer.train_to(7)
    assert steps_in(telemetry) == 7

    with pytest.raises(EmergencyStop):
        trainer.run_round(1, 20)
    assert steps_in(telemetry) == 12
