"""A seed that cannot be built, loaded, compiled or run fails before its graft, and the host stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from growing import graft_plan
from torch import Tensor, nn
from torch.nn.utils import prune

from esper.errors import SeedBuildFailed
from esper.ground.tensors import state_digest, to_bytes
from esper.kasmina.blueprints.catalogue import Blueprint, BlueprintRegistry
from esper.kasmina.host.host_editor import SeedEditor
from esper.kasmina.host.prewarm import prewarm
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import TinyHost


class Raises(nn.Linear):
    """A seed that raises in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"no input of {x.dtype}")


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_context: Any, _gradient: Tensor) -> Tensor:
        raise ValueError("no way back")


class Rows(nn.Linear):
    """A layer with an embedding, whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.rows = nn.Embedding(4, 8, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.rows((x[:, 0] > 0).long())


class RaisesInBackward(nn.Linear):
    """A seed that raises in its backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return _NoGradient.apply(super().forward(x))


def plan_of(module: nn.Module) -> tuple[GraftPlan, dict[str, bytes]]:
    blob = to_bytes(module.state_dict())
    plan = graft_plan(blob, isolated=False)
    return plan, {plan.weights_digest: blob}


def editor_of(host: nn.Module, spec: SlotSpec, factory: Callable[[], nn.Module], backend: str | None) -> SeedEditor:
    blueprints = BlueprintRegistry()
    blueprints.add(Blueprint("planted", tuple(Kind), 0.1, lambda _spec: factory()))
    return SeedEditor(host, {spec.path: spec}, blueprints, backend)


def normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)), nn.Tanh())


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5)


def uncompilable(*_: object, **__: object) -> nn.Module:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("factory", "weights", "backend", "said"),
    [
        (lambda: Raises(8, 8), Raises(8, 8), None, r"prewarm failed: ValueError\(.no input of torch.float32"),
        (lambda: RaisesInBackward(8, 8), nn.Linear(8, 8), None, r"prewarm failed: ValueError\(.no way back"),
        (Rows, Rows(), None, r"prewarm failed: TypeError\(.*sparse=False"),
        (
            normed,
            normed(),
            None,
            r"0.weight is computed by .* WeightNorm, .*: use torch.nn.utils.parametrizations.weight_norm",
        ),
        (pruned, pruned(), None, r"weight is computed by .* L1Unstructured, .*register_parametrization"),
        (lambda: nn.Linear(7, 8), nn.Linear(7, 8), None, r"prewarm failed: RuntimeError\(.mat1"),
        (lambda: nn.Linear(8, 8), nn.Linear(8, 9), None, r"load weights failed: RuntimeError\(.Error"),
        (lambda: nn.Linear(8, 8), nn.Linear(8, 8), "inductor", r"prewarm failed: RuntimeError\(.no compiler"),
    ],
    ids=["forward", "backward", "sparse gradient", "old weight norm", "pruning", "shape", "weights", "compiler"],
)
def test_what_cannot_run_raises_at_the_graft_and_leaves_the_host_alone(
    body_spec, monkeypatch, factory, weights, backend, said
):
    host = TinyHost()
    before, bits = host(torch.ones(2, 8)), state_digest(host.state_dict())
    if backend is not None:
        host._compiled_call_impl = host._call_impl
        monkeypatch.setattr(torch, "compile", uncompilable)
    editor = editor_of(host, body_spec, factory, backend)
    plan, blobs = plan_of(weights)
    with pytest.raises(SeedBuildFailed, match=said):
        editor.graft(plan, blobs)
    assert (editor.topology(), len(host.body._forward_hooks)) == ((), 0)
    assert state_digest(host.state_dict()) == bits
    assert torch.equal(host(torch.ones(2, 8)), before)


def test_prewarming_changes_neither_the_seed_nor_the_random_streams_nor_gradients(body_spec):
    seed = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 8)).eval()
    bits, drawn = state_digest(seed.state_dict()), torch.get_rng_state()
    prewarm(seed, body_spec, "planted", None)
    assert state_digest(seed.state_dict()) == bits
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not seed.training
    assert all(parameter.grad is None for parameter in seed.parameters())


@pytest.mark.parametrize(("dtype", "autocast"), [("torch.float64", None), ("torch.bfloat16", "torch.bfloat16")])
def test_a_seed_is_prewarmed_in_the_precision_of_its_slot(body_spec, dtype, autocast):
    seen: list[tuple[torch.dtype, bool]] = []

    class Looks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(x)

    spec = body_spec.model_copy(update={"dtype": dtype, "autocast": autocast})
    prewarm(Looks(8, 8).to(torch.float64 if autocast is None else torch.float32), spec, "planted", None)
    assert seen == [(getattr(torch, dtype.removeprefix("torch.")), autocast is not None)]


@pytest.mark.slow
def test_a_seed_of_a_compiled_host_is_compiled_before_its_graft(body_spec):
    from torch._dynamo.utils import counters

    host = TinyHost()
    host.compile(backend="eager")
    editor = editor_of(host, body_spec, lambda: nn.Linear(8, 8), "eager")
    before = counters["stats"]["unique_graphs"]
    editor.graft(*plan_of(nn.Linear(8, 8)))
    assert counters["stats"]["unique_graphs"] == before + 1
