"""A finished network blends its seeds as the live host does, to the bit: released, and rebuilt without esper."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from growing import graft_plan, slot
from torch import nn

from esper.export.network_file import network_file
from esper.export.programs import export_bytes, onnx_bytes, play_export, play_onnx, trace
from esper.ground.tensors import to_bytes
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.host.host_editor import SeedEditor
from esper.kasmina.host.rebuilt import structure_digest, whole_state
from esper.leyline.commands import BlendMode, BlendSpec
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import Kind

FIELDS: dict[str, Any] = {
    "RESIDUAL": {},
    "CONVEX": {"schedule": "cosine", "alpha_target": 0.9},
    "CHANNEL": {"channels": (0.25, 1.0), "channel_groups": 2, "schedule": "sigmoid"},
    "CONFIDENCE": {"low": 0.1, "high": 0.8},
}


class Convolutions(nn.Module):
    """[B, 3, 5, 5] -> [B, 2], with a slot "body" of kind NCHW."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


SPEC = slot("body", Kind.NCHW, (4, 5, 5))


def grown(mode: BlendMode, host: nn.Module) -> tuple[SeedEditor, GraftPlan]:
    """Graft a seed into a host, with alpha on its way to the target."""
    module = BLUEPRINTS.get("conv3").build(SPEC, seed_key=1)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -1, 1)
    blob = to_bytes(module.state_dict())
    blend = BlendSpec(mode=mode, ramp_steps=4, **FIELDS[mode])
    confidence = 0.6 if mode is BlendMode.CONFIDENCE else None
    plan = graft_plan(blob, blueprint_id="conv3", isolated=False, blend=blend, confidence=confidence)
    editor = SeedEditor(host.eval(), {"body": SPEC}, BLUEPRINTS)
    editor.graft(plan, {plan.weights_digest: blob})
    editor.set_alphas(2)
    return editor, plan


@pytest.mark.parametrize("mode", BlendMode)
def test_a_finished_network_has_the_live_hosts_bits(mode: BlendMode) -> None:
    torch.manual_seed(0)
    host, x = Convolutions(), torch.randn(6, 3, 5, 5)
    bare = copy.deepcopy(host)
    editor, plan = grown(mode, host)
    live = host(x)
    editor.release()

    scope: dict[str, Any] = {"__name__": "network", "__file__": "network.py"}
    exec(network_file("a-run", 1, [plan], {"body": SPEC}, BLUEPRINTS, ""), scope)
    made = scope["rebuild"](Convolutions, scope["SEEDS"], whole_state(host), structure_digest(bare))

    assert torch.equal(host(x), live)
    assert torch.equal(made(x), live)
    assert not torch.allclose(live, bare.eval()(x))


@pytest.mark.slow
@pytest.mark.parametrize("mode", BlendMode)
def test_a_program_of_a_finished_network_gives_its_outputs(mode: BlendMode) -> None:
    torch.manual_seed(0)
    host, x = Convolutions(), torch.randn(6, 3, 5, 5)
    editor, _ = grown(mode, host)
    editor.release()
    program = trace(host, x, len(x))
    torch.testing.assert_close(play_export(export_bytes(program))(x[:2]), host(x[:2]))
    (output,) = play_onnx(onnx_bytes(program))(x[:2])
    torch.testing.assert_close(torch.from_numpy(output), host(x[:2]).detach())
