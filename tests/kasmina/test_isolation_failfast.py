"""A seed or a host that leaks on purpose is caught: at the graft, or by the first audit of a forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from growing import graft_plan
from torch import Tensor, nn

from esper.errors import IsolationViolation, SeedBuildFailed
from esper.ground.tensors import state_digest, to_bytes
from esper.kasmina.blueprints.catalogue import Blueprint, BlueprintRegistry
from esper.kasmina.host.host_editor import SeedEditor
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import TinyHost

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Host(TinyHost):
    """A host that leaves its last input and its own parameters where a seed can find them."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.body.weight * x.mean()
        return self.head(self.body(x))


class Acts(nn.Linear):
    """An honest layer, and something else."""

    def __init__(self, act: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__(8, 8)
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


CHANGES: dict[str, Callable[[Host], object]] = {
    "add_": lambda host: host.count.add_(2),
    "mul_, which changes no value here": lambda host: host.count.mul_(2),
    "data": lambda host: host.count.data.add_(2),
    "numpy": lambda host: host.count.numpy().__iadd__(2),
    "hooks of head.weight": lambda host: host.head.weight.register_hook(lambda grad: grad * 0),
    "mode of head": lambda host: host.head.eval(),
    "requires_grad of head.bias": lambda host: host.head.bias.requires_grad_(False),
    "gradient of head.bias": lambda host: setattr(host.head.bias, "grad", torch.ones(4)),
}
"""What a seed does to the host -> its name in the violation, or else it is the buffer."""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("grafted", [True, False])
def test_what_a_seed_changes_in_the_host_is_caught(host, body_spec, change, grafted):
    def act(_seed: nn.Module, _h: Tensor, output: Tensor) -> Tensor:
        if not grafted or host.body._forward_hooks:
            CHANGES[change](host)
        return output

    leaves = (change,) if change.endswith(("weight", "bias", "head")) else ("count",)
    if grafted:
        assert caught(host, graft(host, body_spec, Acts(act))) == leaves
    else:  # in its prewarm
        with pytest.raises(IsolationViolation) as violation:
            graft(host, body_spec, Acts(act))
        assert violation.value.leaves == leaves


def test_a_seed_in_a_host_of_channels_last_without_a_gradient_trains(body_spec):
    spec = body_spec.model_copy(update={"kind": Kind.NCHW, "shape": (8, 6, 6)})
    host = nn.Sequential()
    host.add_module("body", nn.Conv2d(8, 8, 3, padding=1))
    editor = graft(host, spec, nn.GroupNorm(1, 8))
    editor.set_alphas(4)
    x = torch.randn(16, 8, 6, 6).to(memory_format=torch.channels_last)
    torch.autograd.backward(host(x).sum())
    assert all(parameter.grad is not None for parameter in editor.parameters_of("seed-0"))


def test_an_input_that_a_seed_changes_in_place_is_caught_at_the_graft_and_later(host, body_spec):
    for act in (lambda _seed, h, output: h.mul_(2) + output, lambda _seed, h, output: h.data.mul_(2) + output):
        with pytest.raises(SeedBuildFailed, match="prewarm failed"):
            graft(host, body_spec, Acts(act))
    later = Acts(lambda _seed, h, output: h.mul_(2) + output if host.body._forward_hooks else output)
    assert caught(host, graft(host, body_spec, later)) == ("output of body",)
