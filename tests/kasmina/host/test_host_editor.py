"""Grafting: a dormant slot is untouched, a grafted seed acts as written, a removed one leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from growing import DRAWN, RUN, drawn_plan
from torch import Tensor, nn

from esper.errors import DependencyViolationError, IsolationViolation, SeedBuildFailed
from esper.ground.tensors import blob_digest, to_bytes
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.host.host_editor import SeedEditor
from esper.leyline.commands import BlendMode, BlendSpec
from esper.leyline.reports import ConfidencePlan, GraftPlan, JoinPlan
from esper.leyline.slots import Kind
from esper.testing import TinyHost, telling

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


class Scale(nn.Module):
    """Correction `weight * h`: not zero, not linear in a stack, with a buffer beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.5))
        self.register_buffer("unit", torch.ones(8))

    def forward(self, h: Tensor) -> Tensor:
        scaled: Tensor = self.weight * self.unit * h
        return scaled


class Add(nn.Module):
    """Correction `weight`, whatever h is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 3.0))

    def forward(self, h: Tensor) -> Tensor:
        return self.weight + torch.zeros_like(h)


class Cheat(nn.Module):
    """Adds the host's own weight to what an honest seed does."""

    def __init__(self, honest: nn.Module, look: Callable[[], Tensor]) -> None:
        super().__init__()
        self.honest, self.look = honest, look

    def forward(self, h: Tensor) -> Tensor:
        found: Tensor = self.honest(h) + 0 * self.look().sum()
        return found


def registry(**factories: Callable[[], nn.Module]) -> BlueprintRegistry:
    made = BlueprintRegistry()
    for name, factory in ({"scale": Scale, "add": Add} | factories).items():
        made.add(Blueprint(name, tuple(Kind), 0.1, lambda _spec, factory=factory: factory()))
    return made


def join(seed_id: str) -> JoinPlan:
    return JoinPlan(command_id="command-2", run_id=RUN, generation=1, seed_id=seed_id, fence=2)


def tiny_host() -> TinyHost:
    torch.manual_seed(0)
    return TinyHost()


@pytest.fixture
def host() -> TinyHost:
    return tiny_host()


@pytest.fixture
def editor(host, body_spec) -> SeedEditor:
    return SeedEditor(host, {"body": body_spec}, registry())


@pytest.fixture
def plan(body_spec) -> Callable[..., GraftPlan]:
    """A plan that asks for full alpha from step 0 on, isolated."""

    def make(
        name: str = "scale", number: int = 0, *, blueprints: BlueprintRegistry | None = None, **changes: Any
    ) -> GraftPlan:
        made = drawn_plan(body_spec, name, number, blueprints=blueprints or registry())
        return made.model_copy(update={"isolated": True} | changes)

    return make


@pytest.fixture
def seeded(host, body_spec, plan) -> Callable[..., SeedEditor]:
    """Give the host, or another, one seed that a factory makes."""

    def make(factory: Callable[[], nn.Module], asking: nn.Module = host) -> SeedEditor:
        blueprints = registry(made=factory)
        editor = SeedEditor(asking, {"body": body_spec}, blueprints)
        graft_all(editor, plan("made", blueprints=blueprints))
        return editor

    return make


def state_of(host: nn.Module) -> dict[str, object]:
    """All of a host that a graft could have touched."""
    return {
        "names": [name for name, _ in host.named_modules()],
        "types": [type(module) for module in host.modules()],
        "state": {name: tensor.clone() for name, tensor in host.state_dict().items()},
        "identities": [id(parameter) for parameter in host.parameters()],
        "flags": [parameter.requires_grad for parameter in host.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in host.modules()],
        "attributes": [sorted(vars(module)) for module in host.modules()],
        "outputs": host(X).detach(),
    }


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    torch.testing.assert_close(after.pop("state"), before.pop("state"), rtol=0, atol=0)
    torch.testing.assert_close(after.pop("outputs"), before.pop("outputs"), rtol=0, atol=0)
    assert after == before


def graft_all(editor: SeedEditor, *plans: GraftPlan) -> None:
    for one in plans:
        editor.graft(one, DRAWN)
    editor.set_alphas(0)


# -- no seed, no trace -------------------------------------------------------------------------------------------


def test_a_dormant_slot_is_not_touched(body_spec):
    host, plain = tiny_host(), tiny_host()
    SeedEditor(host, {"body": body_spec}, registry())
    before, after = state_of(plain), state_of(host)
    before.pop("identities")
    after.pop("identities")
    assert_same(before, after)
    assert not any(module._forward_hooks for module in host.modules())


def test_a_seed_that_came_and_went_leaves_every_bit_as_it_was(host, editor, plan):
    before = state_of(host)
    graft_all(editor, plan("scale", 0), plan("add", 1))
    assert not torch.equal(host(X), before["outputs"])
    with_seeds = state_of(host)
    assert all(with_seeds[known] == before[known] for known in ("names", "types", "identities", "attributes"))
    assert list(with_seeds["state"]) == list(before["state"])
    editor.remove("seed-0")
    editor.remove("seed-1")
    assert_same(before, state_of(host))
    assert editor.topology() == ()
    assert editor.tensors() == {}


def test_a_removal_leaves_the_seeds_above_and_below_it(host, editor, plan):
    graft_all(editor, plan("add", 0), plan("scale", 1), plan("add", 2))
    editor.remove("seed-1")
    h = host.body(X)  # the hook runs here too
    bare = tiny_host().body(X)
    torch.testing.assert_close(h, bare + 3 + 3)
    assert [made.seed_id for made in editor.topology()] == ["seed-0", "seed-2"]


def test_a_users_own_hook_survives(host, editor, plan):
    seen: list[Tensor] = []
    handle = host.body.register_forward_hook(lambda _module, _args, output: seen.append(output))
    graft_all(editor, plan("add"))
    editor.remove("seed-0")
    host(X)
    assert len(seen) == 1
    assert list(host.body._forward_hooks) == [handle.id]


# -- what a seed does --------------------------------------------------------------------------------------------


def test_a_newborn_seed_changes_no_bit(host, body_spec, plan):
    before = host(X)
    for name in ("norm", "low_rank", "mlp"):
        editor = SeedEditor(host, {"body": body_spec}, BLUEPRINTS)
        graft_all(editor, plan(name, blueprints=BLUEPRINTS))
        assert torch.equal(host(X), before), name
        editor.remove("seed-0")


def test_each_seed_of_a_stack_acts_on_the_output_of_those_below_it(host, body_spec, editor, plan):
    graft_all(editor, plan("add", 0), plan("scale", 1))
    bare = tiny_host().body(X)
    torch.testing.assert_close(host.body(X), (bare + 3) * 1.5)

    other = tiny_host()
    upside_down = SeedEditor(other, {"body": body_spec}, registry())
    graft_all(upside_down, plan("scale", 0), plan("add", 1))
    torch.testing.assert_close(other.body(X), bare * 1.5 + 3)


def test_alpha_follows_each_plans_own_ramp(host, editor, plan):
    graft_all(
        editor,
        plan("add", 0, start_step=10, blend=BlendSpec(mode="RESIDUAL", ramp_steps=4, alpha_target=0.8)),
        plan("add", 1, start_step=12, blend=BlendSpec(mode="RESIDUAL", ramp_steps=2)),
    )
    editor.set_alphas(12)
    assert [seen.alpha for seen in editor.observations()] == pytest.approx([0.6, 0.5])
    torch.testing.assert_close(host.body(X), tiny_host().body(X) + 0.6 * 3 + 0.5 * 3)


@pytest.mark.parametrize("target", [0.1, 0.3, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_ramp_that_has_ended_has_reached_its_target_in_every_dtype(body_spec, plan, target, dtype):
    host = tiny_host().to(dtype)
    editor = SeedEditor(host, {"body": body_spec.model_copy(update={"dtype": str(dtype)})}, registry())
    editor.graft(plan("add", blend=BlendSpec(mode="RESIDUAL", ramp_steps=3, alpha_target=target)), DRAWN)
    editor.set_alphas(1)
    (short,) = editor.observations()
    assert short.alpha < short.alpha_target
    editor.set_alphas(2)
    (full,) = editor.observations()
    assert full.alpha >= full.alpha_target
    assert full.alpha_target == pytest.approx(target, rel=1e-2)


def test_a_copy_of_a_grafted_host_is_independent_of_it(host, editor, plan):
    graft_all(editor, plan("scale"))
    editor.watch(True)
    host(X).sum().backward()
    editor.audit()
    twin = copy.deepcopy(host)
    before = host(X).detach()
    assert torch.equal(twin(X), before)

    (weight,) = editor.parameters_of("seed-0")
    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(twin(X), before)
    editor.remove("seed-0")
    assert torch.equal(twin(X), before)
    (hook,) = twin.body._forward_hooks.values()
    (copied,) = hook.__self__.seeds
    assert copied.module.weight is not weight


def test_tensors_are_named_by_place_and_not_by_anything_of_the_run(editor, plan):
    graft_all(editor, plan("scale", 3), plan("add", 4))
    assert set(editor.tensors()) == {
        "esper_seeds.body.3.module.weight",
        "esper_seeds.body.3.module.unit",
        "esper_seeds.body.3.alpha",
        "esper_seeds.body.4.module.weight",
        "esper_seeds.body.4.alpha",
    }
    text = str(sorted(editor.tensors()))
    assert RUN not in text
    assert "seed-3" not in text


def test_a_seed_follows_the_hosts_mode(host, seeded):
    editor = seeded(lambda: nn.Sequential(Add(), nn.Dropout(1.0)), host.eval())
    bare = tiny_host().body(X)
    torch.testing.assert_close(host.body(X), bare + 3)
    editor.set_training(True)
    torch.testing.assert_close(host.body(X), bare)


class Named(NamedTuple):
    output: Tensor
    state: Tensor


@pytest.mark.parametrize("give", [lambda h: (h, 2 * h), lambda h: Named(h, 2 * h)], ids=["tuple", "named tuple"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_seed_acts_on_the_first_item_of_a_tuple_and_on_no_other(body_spec, plan, give, finished):
    class Body(nn.Module):
        def forward(self, h: Tensor) -> Any:
            return give(h)

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, h: Tensor) -> Any:
            return self.body(h)

    host = Host()
    editor = SeedEditor(host, {"body": body_spec}, registry())
    graft_all(editor, plan("add"))
    if finished:
        editor.release()
    changed = host(X)
    assert type(changed) is type(give(X))
    torch.testing.assert_close(changed[0], X + 3)
    assert torch.equal(changed[1], 2 * X)


# -- what is seen of it ------------------------------------------------------------------------------------------


def test_an_observation_is_what_was_seen_since_the_last_one(host, editor, plan):
    graft_all(editor, plan("scale"))
    (unseen,) = editor.observations()
    assert (unseen.calls, unseen.output_shape, unseen.device, unseen.path) == (0, None, None, None)
    host(X)
    host(X)
    (seen,) = editor.observations()
    assert (seen.seed_id, seen.slot, seen.calls) == ("seed-0", "body", 2)
    assert (seen.output_shape, seen.output_dtype, seen.device, seen.path) == ((8,), "torch.float32", "cpu", "eager")
    assert (seen.asked_device, seen.asked_path) == ("cpu", "eager")
    assert editor.observations() == (unseen,)


def calls_compiled(module: nn.Module) -> nn.Module:
    """As `module.compile()` leaves it, without the seconds that compiling takes."""
    module._compiled_call_impl = module._call_impl
    return module


def test_a_call_through_a_compiled_callable_is_seen_beside_the_path_that_the_host_asks_for(seeded):
    def seen_with(seed: Callable[[], nn.Module], asking: nn.Module) -> tuple[str | None, str, tuple[str, ...] | None]:
        editor = seeded(seed, asking)
        asking(X)
        (seen,) = editor.observations()
        return seen.path, seen.asked_path, seen.fallbacks

    assert seen_with(Scale, tiny_host()) == ("eager", "eager", ())
    asked_eager = seen_with(lambda: calls_compiled(Scale()), tiny_host())
    assert asked_eager == ("compiled", "eager", ("path compiled, asked eager",))
    asked_compiled = seen_with(Scale, calls_compiled(tiny_host()))  # its callable is not compiled at all
    assert asked_compiled == ("eager", "compiled", ("path eager, asked compiled",))
    asking = tiny_host()
    calls_compiled(asking.body)
    assert seen_with(Scale, asking) == asked_compiled


@pytest.mark.slow
def test_a_seed_in_a_host_that_torch_compiles_is_seen_to_run_compiled(host, editor, plan):
    graft_all(editor, plan("scale"))
    torch.compile(host, backend="eager")(X)
    (seen,) = editor.observations()
    assert (seen.path, seen.calls) == ("compiled", 1)


def test_no_call_and_no_tensor_of_a_seed_on_another_device_or_in_another_dtype_goes_unseen(host, seeded):
    class Turns(Scale):
        def forward(self, h: Tensor) -> Tensor:
            self.unit = self.unit.to("meta")
            return self.weight * h

    editor = seeded(Turns)
    host(X)
    (seen,) = editor.observations()
    assert seen.fallbacks == ("device cpu and meta, asked cpu",)


def test_only_what_trains_is_a_parameter(seeded):
    def half_frozen() -> nn.Module:
        made = nn.Sequential(Scale(), Add())
        made[0].weight.requires_grad_(False)
        return made

    editor = seeded(half_frozen)
    (parameter,) = editor.parameters_of("seed-0")
    assert parameter is editor.tensors()["esper_seeds.body.0.module.1.weight"]


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_graft_that_cannot_be_done_leaves_the_host_untouched(host, editor, plan, body_spec):
    before = state_of(host)
    with pytest.raises(DependencyViolationError, check=telling(subject="seed seed-0", missing="slot not known")):
        editor.graft(plan(slot="tail"), DRAWN)
    with pytest.raises(DependencyViolationError, check=telling(subject="seed seed-0", missing="weights not given")):
        editor.graft(plan(), {})
    with pytest.raises(DependencyViolationError, match="blend mode not known"):
        editor.graft(plan("add", blend=BlendSpec(mode="CROSSFADE", ramp_steps=1)), DRAWN)

    def broken() -> nn.Module:
        raise RuntimeError("no such luck")

    with pytest.raises(SeedBuildFailed) as caught:
        SeedEditor(host, {"body": body_spec}, registry(scale_2=Scale, broken=broken)).graft(
            plan(blueprint_id="broken"), DRAWN
        )
    assert isinstance(caught.value.__cause__, RuntimeError)
    weights = to_bytes({"weight": torch.zeros(8)})
    with pytest.raises(SeedBuildFailed, match=r"load weights failed: .*unit"):
        editor.graft(plan(weights_digest=blob_digest(weights)), {blob_digest(weights): weights})
    assert editor.topology() == ()
    assert_same(before, state_of(host))


def test_a_seed_is_grafted_once(host, editor, plan):
    graft_all(editor, plan("add"))
    with pytest.raises(DependencyViolationError, check=telling(subject="seed seed-0", missing="already grafted")):
        editor.graft(plan("add"), DRAWN)
    torch.testing.assert_close(host.body(X), tiny_host().body(X) + 3)


@pytest.mark.parametrize("ask", [SeedEditor.remove, SeedEditor.parameters_of])
def test_a_seed_that_is_not_there_is_missed(editor, ask):
    with pytest.raises(DependencyViolationError, check=telling(subject="seed seed-0", missing="not in this host")):
        ask(editor, "seed-0")


# -- isolation ---------------------------------------------------------------------------------------------------


def gradients(host: nn.Module) -> dict[str, Tensor]:
    host.zero_grad()
    host(X).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in host.named_parameters()}


def by_hand(correction: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Gradients of a bare host into whose slot `correction` is added by hand."""
    host = tiny_host()
    h = host.body(X)
    host.head(h + correction(h)).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in host.named_parameters()}


def test_an_isolated_seed_gives_the_host_the_gradient_of_a_constant_and_a_joined_one_does_not(host, editor, plan):
    graft_all(editor, plan("scale"))
    constant, free = by_hand(lambda h: 0.5 * h.detach()), by_hand(lambda h: 0.5 * h)

    isolated = gradients(host)
    (weight,) = editor.parameters_of("seed-0")
    own = weight.grad.clone()
    editor.amend(join("seed-0"))
    joined = gradients(host)

    for name in constant:
        assert torch.equal(isolated[name], constant[name]), name
        assert torch.equal(joined[name], free[name]), name
    assert not torch.equal(isolated["body.weight"], joined["body.weight"])
    assert own.abs().sum() > 0


def test_an_isolated_seed_keeps_its_gradient_from_the_seeds_below_it_too(host, editor, plan):
    graft_all(editor, plan("add", 0, isolated=False), plan("scale", 1))
    gradients(host)
    isolated = editor.parameters_of("seed-0")[0].grad.clone()
    editor.parameters_of("seed-0")[0].grad = None
    editor.amend(join("seed-1"))
    gradients(host)
    assert not torch.equal(isolated, editor.parameters_of("seed-0")[0].grad)


def test_the_audit_passes_an_isolated_seed_and_does_not_judge_a_joined_one(host, editor, plan):
    graft_all(editor, plan("add", 0), plan("scale", 1))
    editor.amend(join("seed-0"))
    editor.watch(True)
    host(X)
    assert editor.audit() is None


def test_the_audit_catches_a_seed_that_reaches_for_another_seed(host, body_spec, plan):
    borrowed: list[nn.Parameter] = []
    blueprints = registry(cheat=lambda: Cheat(Add(), lambda: borrowed[0]))
    editor = SeedEditor(host, {"body": body_spec}, blueprints)
    graft_all(editor, plan("scale", 0))
    borrowed += editor.parameters_of("seed-0")
    graft_all(editor, plan("cheat", 1, blueprints=blueprints))
    editor.watch(True)
    host(X)
    with pytest.raises(IsolationViolation) as caught:
        editor.audit()
    assert caught.value.leaves == ("esper_seeds.body.0.module.weight",)


def test_without_a_watched_forward_there_is_nothing_to_audit_and_nothing_is_kept(host, seeded):
    editor = seeded(lambda: Cheat(Add(), lambda: host.body.weight))
    host(X)
    editor.audit()
    editor.watch(True)
    host(X)
    with pytest.raises(IsolationViolation):
        editor.audit()
    editor.audit()  # the branch that was audited is not held on to


BLENDED: dict[str, tuple[dict[str, Any], float | None]] = {
    "RESIDUAL": ({}, None),
    "CONVEX": ({}, None),
    "CHANNEL": ({"channels": (0.5,) * 8}, None),
    "CONFIDENCE": ({}, 0.5),
}
"""Fields of a blend of each mode, and its confidence."""


@pytest.mark.parametrize("mode", BlendMode)
def test_a_thousand_alphas_compile_a_host_no_second_time(host, editor, plan, mode):
    fields, confidence = BLENDED[mode]
    blend = BlendSpec(mode=mode, ramp_steps=1000, **fields)
    editor.graft(plan("add", blend=blend, confidence=confidence), DRAWN)
    compiled, made = torch.compile(host, backend="eager"), torch._dynamo.utils.counters["stats"]
    for step in (0, 1):  # the second call compiles again: the seed has noted the shape of the first
        editor.set_alphas(step)
        compiled(X)
    before, outputs = made["unique_graphs"], []
    for step in range(2, 1000):
        editor.set_alphas(step)
        outputs.append(compiled(X))
    assert made["unique_graphs"] == before > 0
    assert not torch.equal(outputs[0], outputs[-1])


def test_a_changed_confidence_is_in_the_plan_at_once_and_in_alpha_from_the_next_step_on(editor, plan):
    sure = plan("add", blend=BlendSpec(mode="CONFIDENCE", ramp_steps=1, low=0.1), confidence=0.5)
    editor.graft(sure, DRAWN)
    editor.set_alphas(0)
    assert editor.observations()[0].alpha == editor.observations()[0].alpha_target == 0.5
    ids = {"command_id": "c", "run_id": RUN, "generation": 1, "fence": 3}
    editor.amend(ConfidencePlan(seed_id=sure.seed_id, confidence=0.75, joins=False, **ids))
    assert editor.topology() == (sure.model_copy(update={"confidence": 0.75}),)
    editor.set_alphas(1)
    assert editor.observations()[0].alpha == 0.75
    editor.amend(ConfidencePlan(seed_id=sure.seed_id, confidence=0.0, joins=True, **ids))
    editor.set_alphas(2)
    (seen,) = editor.observations()
    assert (seen.alpha, seen.alpha_target, seen.isolated) == (pytest.approx(0.1), pytest.approx(0.1), False)
    assert [one.mean for one in editor.blend_reports()] == [pytest.approx((0.5 + 0.75 + 0.1) / 3)]
