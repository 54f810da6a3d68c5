"""Padding masks: every form that users give is read alike, and other forms are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.host.dry_run import dry_run
from esper.kasmina.host.padding_masks import padding_of, positional_names
from esper.leyline.slots import SlotSpec

PADDED = torch.tensor([[False, False, True, True, True], [False, False, False, False, True]])
H = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
ADDED = torch.zeros(2, 5).masked_fill(PADDED, float("-inf"))
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


class Takes(nn.Module):
    def forward(self, x: Tensor, padding_mask: Tensor | None = None, **more: Tensor) -> Tensor:
        del padding_mask, more
        return x


def read(name: str, mask: Tensor | None) -> Tensor | None:
    return padding_of(positional_names(Takes()), (H,), {name: mask}, H)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("src_key_padding_mask", PADDED),
        ("tgt_key_padding_mask", ADDED),
        ("key_padding_mask", ADDED.clamp(min=-1e9)),
        ("padding_mask", PADDED),
        ("attention_mask", ~PADDED),
        ("attention_mask", (~PADDED).long()),
        ("attention_mask", ADDED[:, None, None]),
        ("attention_mask", ~PADDED[:, None, None]),
        ("attention_mask", ~PADDED[:, None, None] & CAUSAL),
        ("attention_mask", torch.zeros(2, 1, 5, 5).masked_fill(PADDED[:, None, None] | ~CAUSAL, -1e9)),
    ],
)
def test_each_form_of_a_mask_is_read_as_the_same_padding(name: str, mask: Tensor) -> None:
    found = read(name, mask)
    assert found is not None
    assert torch.equal(found, PADDED)
    found.fill_(True)
    assert torch.equal(read(name, mask), PADDED), "what a seed does with its padding changes no mask of the host"


def test_a_mask_is_read_by_its_place_too_and_no_mask_is_no_padding() -> None:
    assert torch.equal(padding_of(positional_names(Takes()), (H, PADDED), {}, H), PADDED)
    assert read("padding_mask", None) is read("attn_mask", PADDED) is None
    unsigned = Takes()
    unsigned.forward = dict  # like a traced module, it has no signature
    assert padding_of(positional_names(unsigned), (H, PADDED), {}, H) is None


def test_a_mask_of_other_keys_is_not_the_padding_of_the_queries() -> None:
    names = positional_names(nn.MultiheadAttention(8, 2))
    assert torch.equal(padding_of(names, (H, H, H, PADDED), {}, H), PADDED)
    assert padding_of(names, (H, H + 1, H + 1, PADDED), {}, H) is None


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("padding_mask", PADDED.T),
        ("padding_mask", PADDED.long()),
        ("padding_mask", PADDED[:, None, None]),
        ("attention_mask", ADDED),
        ("attention_mask", (~PADDED).long()[:, None, None]),
        ("attention_mask", ADDED[:1, None, None]),
    ],
)
def test_another_form_is_refused_with_name_shape_and_type(name: str, mask: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"^{name} of shape \({mask.shape[0]}, .*{mask.dtype}.*\(2, 5, 8\)"):
        read(name, mask)


# -- the dry run -------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Its slot is given a mask, of a form that the test chooses."""

    def __init__(self, form: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.body, self.form = Takes(), form

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, self.form(PADDED))


@pytest.mark.parametrize(
    ("form", "found"), [(lambda mask: mask, "padding_mask"), (lambda mask: mask.T, None), (lambda _: None, None)]
)
def test_the_dry_run_says_by_which_argument_a_slot_gets_a_mask_that_seeds_can_read(form, found) -> None:
    (spec,) = dry_run(Masked(form), ["body"], H, lambda model, x: model(x)).specs
    assert spec.padding == found
    assert ("padding" in spec.model_dump_json()) is (found is not None), "a slot without one is written as before"
    assert SlotSpec.model_validate_json(spec.model_dump_json()) == spec
