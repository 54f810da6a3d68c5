"""A seed or a host that leaks on purpose is caught: at the graft, or by the first audit of a forward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from growing import graft_plan
from torch import Tensor, nn

from esper.errors import IsolationViolation, SeedBuildFailed
from esper.ground.tensors import state_digest, to_bytes
from esper.kasmina.blueprints.catalogue import Blueprint, BlueprintRegistry
from esper.kasmina.host.host_editor import SeedEditor
from esper.leyline.reports import JoinPlan
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import TinyHost

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Host(TinyHost):
    """A host that leaves its last input and its own parameters where a seed can find them."""

    seen: Tensor
    batch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.body.weight * x.mean()
        return self.head(self.body(x))


class Acts(nn.Linear):
    """An honest layer, and something else."""

    def __init__(self, act: Callable[[nn.Module, Tensor, Tensor], Tensor], width: int = 8) -> None:
        super().__init__(width, width)
        self.act = act

    def forward(self, h: Tensor) -> Tensor:
        return self.act(self, h, super().forward(h))


@pytest.fixture
def host() -> Host:
    return Host()


def graft(host: nn.Module, spec: SlotSpec, *modules: nn.Module) -> SeedEditor:
    """Graft isolated seeds, whose weights are those of the modules."""
    blueprints, factories = BlueprintRegistry(), list(modules)
    blueprints.add(Blueprint("planted", tuple(Kind), 0.1, lambda _spec: factories.pop(0)))
    editor = SeedEditor(host, {spec.path: spec}, blueprints)
    for ordinal, module in enumerate(modules):
        blob = to_bytes({name: torch.ones_like(tensor) for name, tensor in module.state_dict().items()})
        plan = graft_plan(blob, seed_id=f"seed-{ordinal}", ordinal=ordinal)
        editor.graft(plan, {plan.weights_digest: blob})
    editor.watch(True)
    return editor


def caught(host: nn.Module, editor: SeedEditor) -> tuple[str, ...]:
    host(X)
    with pytest.raises(IsolationViolation) as violation:
        editor.audit()
    return violation.value.leaves


def test_an_honest_seed_passes(host, body_spec):
    editor = graft(host, body_spec, nn.Linear(8, 8), nn.Linear(8, 8))
    host(X)
    assert editor.watched() == ("seed-0", "seed-1")
    editor.audit()


def test_an_input_that_is_not_detached_is_caught(host, body_spec, monkeypatch):
    editor = graft(host, body_spec, nn.Linear(8, 8))
    monkeypatch.setattr(Tensor, "detach", lambda tensor: tensor)
    assert caught(host, editor) == ("body.bias", "body.weight")


def test_a_parameter_of_the_host_in_a_seed_is_caught_before_it_is_overwritten(host, body_spec):
    before = state_digest(host.state_dict())
    seed = nn.Linear(8, 8)
    seed.weight = host.body.weight
    with pytest.raises(IsolationViolation, match=r"body\.weight"):
        graft(host, body_spec, seed)
    assert state_digest(host.state_dict()) == before
    assert not host.body._forward_hooks


@pytest.mark.parametrize("part", [slice(None), slice(2, 3)])
def test_weights_that_are_tied_to_the_hosts_by_their_memory_are_caught(host, body_spec, part):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(host.head.weight.data[part])

        def forward(self, h: Tensor) -> Tensor:
            return h * self.weight.mean()

    with pytest.raises(IsolationViolation, match=r"head\.weight"):
        graft(host, body_spec, Tied())


def test_weights_that_a_forward_ties_to_the_hosts_are_caught(host, body_spec):
    def tie(seed: nn.Module, _h: Tensor, output: Tensor) -> Tensor:
        if seed.training and host.body._forward_hooks:
            seed.weight.data = host.body.weight.data
        return output

    assert "body.weight" in caught(host, graft(host, body_spec, Acts(tie)))


def test_weights_that_two_seeds_share_are_caught(host, body_spec):
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.bias = first.bias
    with pytest.raises(IsolationViolation, match=r"esper_seeds\.body\.0\.module\.bias"):
        graft(host, body_spec, first, second)


def test_an_activation_of_the_host_in_a_closure_is_caught(host, body_spec):
    seed = Acts(lambda _seed, _h, output: output + (0 if not hasattr(host, "seen") else host.seen.mean()))
    assert caught(host, graft(host, body_spec, seed)) == ("body.weight",)


LEAKS: dict[str, tuple[Callable[[Host, Tensor], object], str]] = {
    "adds in place": (lambda host, _: host.count.add_(2), "count"),
    "writes what is there already": (lambda host, _: host.count.mul_(2), "count"),
    "writes to the data of a parameter": (lambda host, _: host.head.weight.data.add_(1e-3), "head.weight"),
    "writes through numpy": (lambda host, _: np.multiply(*[host.head.weight.detach().numpy()] * 3), "head.weight"),
    "writes to the data of a buffer": (lambda host, _: host.count.data.add_(1), "count"),
    "writes to the data of its input": (lambda _, h: h.data.mul_(0.5), "output of body"),
    "writes to the batch": (lambda host, _: host.batch.data.mul_(2), "the batch"),
    "writes a gradient": (lambda host, _: setattr(host.head.bias, "grad", torch.ones(4)), "head.bias.grad"),
    "hooks a gradient": (lambda host, _: host.head.weight.register_hook(lambda grad: grad * 0), "head.weight"),
    "hooks a module": (lambda host, _: host.head.register_forward_pre_hook(lambda *_: None), "head._forward_pre_hooks"),
    "freezes": (lambda host, _: host.head.bias.requires_grad_(False), "head.bias"),
    "replaces by its equal": (
        lambda host, _: setattr(host.head, "bias", nn.Parameter(host.head.bias.detach().clone())),
        "head.bias",
    ),
    "changes a mode": (lambda host, _: host.head.eval(), "head.training"),
    "sets an attribute": (lambda host, _: setattr(host.head, "scale", 2.0), "head.scale"),
}
"""What a seed does to its host in its first call after the graft -> the name that is blamed."""


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("isolated", [True, False])
def test_whatever_a_seed_changes_outside_itself_is_caught_by_name(host, body_spec, leak, isolated):
    change, name = LEAKS[leak]

    def act(_seed: nn.Module, h: Tensor, output: Tensor) -> Tensor:
        if host.body._forward_hooks:
            change(host, h)
        return output

    editor = graft(host, body_spec, Acts(act))
    if not isolated:
        editor.amend(JoinPlan(seed_id="seed-0", command_id="c", run_id="run", generation=1, fence=2))
    host.batch = X.clone()
    editor.watch(True, host.batch)
    host(X)
    with pytest.raises(IsolationViolation) as violation:
        editor.audit()
    assert (violation.value.blueprint, violation.value.slot) == ("planted", "body")
    assert name in violation.value.leaves


COUNTED = ("adds in place", "writes what is there already")
"""The leaks that a call shows which is not audited."""


@pytest.mark.parametrize("leak", COUNTED)
def test_a_change_in_place_between_two_audits_is_found_by_the_next(host, body_spec, leak):
    change, name = LEAKS[leak]
    leaking = [False]
    seed = Acts(lambda _seed, h, output: (change(host, h) if leaking[0] else None, output)[1])
    editor = graft(host, body_spec, nn.Linear(8, 8), seed)
    for audited in (True, False, True):
        editor.watch(audited)
        leaking[0] = not audited
        host(X)
    with pytest.raises(IsolationViolation) as violation:
        editor.audit()
    assert (violation.value.seed_id, violation.value.leaves) == ("seed-1", (name,))
    editor.audit()


def test_a_change_in_place_in_an_evaluation_is_not_counted(host, body_spec):
    """The trainer restores the host after an evaluation. In training mode the same call is a violation."""
    seed = Acts(lambda _seed, _h, output: (host.count.add_(1) if host.body._forward_hooks else None, output)[1])
    editor = graft(host, body_spec, seed)
    editor.watch(False)
    editor.set_training(False)
    host(X)
    editor.audit()
    editor.set_training(True)
    assert caught(host, editor) == ("count",)


@pytest.mark.parametrize("audited", [True, False])
def test_a_hook_of_a_joined_seed_on_its_input_is_found(host, body_spec, audited):
    def act(_seed: nn.Module, h: Tensor, output: Tensor) -> Tensor:
        if host.body._forward_hooks:
            h.register_hook(lambda gradient: 2 * gradient)
        return output

    editor = graft(host, body_spec, Acts(act))
    editor.amend(JoinPlan(seed_id="seed-0", command_id="c", run_id="run", generation=1, fence=2))
    editor.watch(audited)
    assert caught(host, editor) == ("output of body",)


class Backward(torch.autograd.Function):
    """The identity, with something else in its backward pass."""

    @staticmethod
    def forward(ctx, h, act):
        ctx.act = act
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.act()
        return gradient, None


def give_gradient(host: Host) -> None:
    host.body.bias.grad = torch.ones(8)


BACKWARD_LEAKS: dict[str, tuple[Callable[[Host], object], str]] = {
    "nothing": (lambda _: None, ""),
    "writes a parameter": (lambda host: host.body.weight.data.add_(1), "body.weight"),
    "writes a buffer": (lambda host: host.count.add_(1), "count"),
    "writes a gradient that is there": (lambda host: host.head.weight.grad.mul_(0), "head.weight.grad"),
    "gives a gradient": (give_gradient, "body.bias.grad"),
    "hooks a gradient": (lambda host: host.body.weight.register_hook(lambda grad: grad * 0), "body.weight"),
}


@pytest.mark.parametrize("leak", BACKWARD_LEAKS)
@pytest.mark.parametrize("isolated", [True, False])
def test_a_change_by_the_backward_pass_of_a_seed_is_found(host, body_spec, leak, isolated):
    change, name = BACKWARD_LEAKS[leak]
    grafted = []

    def act(_seed: nn.Module, _h: Tensor, output: Tensor) -> Tensor:
        return Backward.apply(output, lambda: change(host)) if grafted else output

    editor = graft(host, body_spec, nn.Linear(8, 8), Acts(act), nn.Linear(8, 8))
    editor.set_alphas(4)
    grafted.append(True)
    if not isolated:
        for seed_id in ("seed-0", "seed-1", "seed-2"):
            editor.amend(JoinPlan(seed_id=seed_id, command_id="c", run_id="run", generation=1, fence=2))
    output = host(X)
    editor.audit()
    editor.watch(False)
    output.square().sum().backward()
    if name:
        with pytest.raises(IsolationViolation) as violation:
            editor.audit()
        assert (violation.value.seed_id, violation.value.leaves) == ("seed-1", (name,))
    editor.audit()


def test_a_seed_that_changes_the_host_while_it_is_prewarmed_is_not_attached(host, body_spec):
    before = state_digest(host.state_dict())
    with pytest.raises(IsolationViolation, match=r"blueprint planted at body, seed seed-0: .*head\.training"):
        graft(host, body_spec, Acts(lambda _seed, _h, output: (host.head.eval(), output)[1]))
    assert state_digest(host.state_dict()) == before
    assert not host.body._forward_hooks


def test_a_parameter_of_another_host_is_caught(host, body_spec):
    other = Host()
    seed = Acts(lambda _seed, _h, output: output + other.head.weight.mean())
    (leaf,) = caught(host, graft(host, body_spec, seed))
    assert "outside the seed" in leaf
    assert other.head.weight.grad is None  # the prewarm's backward pass has not reached it


def test_an_input_that_a_seed_changes_in_place_ends_the_run_at_the_graft_and_later(host, body_spec):
    for act in (lambda _seed, h, output: h.mul_(2) + output, lambda _seed, h, output: h.data.mul_(2) + output):
        with pytest.raises(SeedBuildFailed, match="prewarm failed"):
            graft(host, body_spec, Acts(act))
    later = Acts(lambda _seed, h, output: h.mul_(2) + output if host.body._forward_hooks else output)
    editor = graft(host, body_spec, later)
    for audited in (True, False):
        editor.watch(audited)
        with pytest.raises(SeedBuildFailed, match=r"blueprint planted at body: forward failed: .* changes its input"):
            host(X)


@pytest.mark.parametrize("output", ["its own parameter", "part of a recurrent output"])
def test_a_joined_seed_may_reach_what_is_behind_its_input_and_nothing_beside_it(body_spec, output):
    """The search of the graph stops at the input, even if it is a leaf, or one output of several of a node."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 16))

        def forward(self, x: Tensor) -> Tensor:
            if output == "its own parameter":
                return self.weight
            first, self.second = (x.repeat(1, 2) * self.weight).tensor_split(2, dim=1)
            return first

    class OfBody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    for leaks in (False, True):
        host = OfBody()
        wide = output == "its own parameter"
        spec = body_spec.model_copy(update={"shape": (16 if wide else 8,)})

        def act(_seed: nn.Module, _h: Tensor, made: Tensor, host: nn.Module = host, leaks: bool = leaks) -> Tensor:
            return made if not leaks or not hasattr(host.body, "second") else made + host.body.second.mean()

        editor = graft(host, spec, Acts(act, 16 if wide else 8))
        editor.amend(JoinPlan(seed_id="seed-0", command_id="c", run_id="run", generation=1, fence=2))
        if leaks and not wide:
            assert caught(host, editor) == ("body.weight",)
        else:
            host(X)
            editor.audit()


def test_a_seed_in_a_host_of_channels_last_without_a_gradient_trains(body_spec):
    spec = body_spec.model_copy(update={"kind": Kind.NCHW, "shape": (8, 6, 6)})
    host = nn.Sequential()
    host.add_module("body", nn.Conv2d(8, 8, 3, padding=1))
    editor = graft(host, spec, nn.GroupNorm(1, 8))
    editor.set_alphas(4)
    x = torch.randn(16, 8, 6, 6).to(memory_format=torch.channels_last)
    for watched in (False, True):
        editor.watch(watched)
        torch.autograd.backward(host(x).sum())
        assert all(parameter.grad is not None for parameter in editor.parameters_of("seed-0"))
