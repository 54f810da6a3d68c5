"""Seeds that take padding in real hosts: live and finished, in both modes, and with masks that are not understood."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from growing import DRAWN, drawn_plan, slot
from torch import Tensor, nn

from esper.errors import TaskError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.host.dry_run import dry_run
from esper.kasmina.host.host_editor import SeedEditor
from esper.leyline.slots import Kind
from esper.testing import telling

PADDED = torch.tensor([[False, False, True, True, True], [False, False, False, False, True]])
H = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
ADDED = torch.zeros(2, 5).masked_fill(PADDED, float("-inf"))


class Encoder(nn.Module):
    """(x [B, T, C], mask [B, T]) -> [B, T, C] by torch's encoder, called as users call it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, **options)

    def forward(self, given: tuple[Tensor, Tensor | None]) -> Tensor:
        return self.body(given[0], src_key_padding_mask=given[1])


def grown(slots: list[str], backend: str | None = None, **options: Any) -> tuple[Encoder, SeedEditor]:
    """An encoder with one trained seed in every slot, at full strength. `backend`: that of `torch.compile`."""
    torch.manual_seed(0)
    host = Encoder(**options)
    specs = dry_run(host, slots, (H, PADDED), lambda model, given: model(given)).specs
    assert {spec.padding for spec in specs} <= {"src_key_padding_mask", "key_padding_mask"}
    if backend is not None:
        host.compile(backend=backend)
    editor = SeedEditor(host, {spec.path: spec for spec in specs}, BLUEPRINTS, backend)
    for number, spec in enumerate(specs):
        plan = drawn_plan(spec, "masked_attention", number)
        editor.graft(plan, DRAWN)
        for parameter in editor.parameters_of(plan.seed_id):
            nn.init.normal_(parameter, std=0.3)
    editor.set_alphas(1)
    return host, editor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(
    ("slots", "options"),
    [
        (["body.layers.0", "body.layers.1"], {"enable_nested_tensor": False}),
        (["body.layers.*.self_attn"], {"enable_nested_tensor": False}),
        (["body"], {}),
    ],
    ids=["layers", "attention", "whole"],
)
def test_in_every_mode_and_form_the_seeds_of_torchs_encoder_see_the_same_padding(slots, options) -> None:
    """Whole: torch packs a padded batch into a nested tensor in evaluation, and unpacks it before the slot's output."""
    host, editor = grown(slots, **options)
    junk = torch.where(PADDED[..., None], torch.randn_like(H), H)
    bare = Encoder(**options)
    bare.load_state_dict(host.state_dict())
    for training in (True, False):
        host.train(training), editor.set_training(training), bare.train(training)
        with torch.set_grad_enabled(training):
            out = host((H, PADDED))[~PADDED]
            assert not torch.allclose(out, bare((H, PADDED))[~PADDED], atol=1e-3), "the seeds do nothing"
            assert torch.allclose(host((junk, PADDED))[~PADDED], out, atol=1e-6)
            assert torch.allclose(host((H, ADDED))[~PADDED], out, atol=1e-6)
            assert torch.allclose(host((H, None)), host((H, PADDED & False)), atol=1e-6)
    editor.release()
    with torch.no_grad():
        assert torch.equal(host((H, PADDED))[~PADDED], out), "the finished network reads the mask by its own hooks"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, as it compiles
def test_a_compiled_host_gives_its_seeds_the_same_padding_in_one_graph() -> None:
    slots, options = ["body.layers.0", "body.layers.1"], {"enable_nested_tensor": False}
    (host, editor), (plain, _) = grown(slots, "eager", **options), grown(slots, **options)
    torch._dynamo.utils.counters.clear()  # of earlier tests
    for mask in (PADDED, ADDED):
        assert torch.allclose(host((H, mask))[~PADDED], plain((H, mask))[~PADDED], atol=1e-6)
    assert {(seen.calls, seen.path) for seen in editor.observations()} == {(2, "compiled")}
    assert not torch._dynamo.utils.counters["graph_break"]


class Takes(nn.Module):
    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        del padding_mask
        return x


def test_a_mask_that_is_not_understood_is_an_error_of_the_slot_for_seeds_that_take_padding_only() -> None:
    host, spec = nn.Sequential(Takes()), slot("0", Kind.NTC, (5, 8), padding="padding_mask")
    editor = SeedEditor(host, {"0": spec}, BLUEPRINTS)
    editor.graft(drawn_plan(spec, "attention", 0), DRAWN)
    host[0](H, PADDED.T)
    editor.graft(drawn_plan(spec, "masked_attention", 1), DRAWN)
    with pytest.raises(TaskError, check=telling("padding_mask of shape (5, 2)", field="slot 0")):
        host[0](H, PADDED.T)
