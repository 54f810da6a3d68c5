"""Placebos: nothing at first, the shape of every slot, trained like any seed, and of no use by their make."""

from __future__ import annotations

import pytest
import torch
from growing import slot
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.blueprints.placebos import PLACEBOS, USELESS, name_of, useless_name
from esper.leyline.slots import Kind, SlotSpec

SPECS = {
    Kind.NC: slot("a", Kind.NC, (8,)),
    Kind.NTC: slot("b", Kind.NTC, (5, 8)),
    Kind.NCT: slot("e", Kind.NCT, (8, 5)),
    Kind.NCHW: slot("c", Kind.NCHW, (8, 4, 3)),
}
ONE_CHANNEL = slot("d", Kind.NCHW, (1, 4, 3))


def a_step(seed: nn.Module, h: Tensor) -> Tensor:
    """Train one step against a random direction. Return the output afterwards."""
    optimizer = torch.optim.SGD([p for p in seed.parameters() if p.requires_grad], lr=0.1)
    (seed(h) * torch.randn_like(h)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        output: Tensor = seed(h)
    return output


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("place", range(len(PLACEBOS)))
def test_a_placebo_is_zero_at_first_trains_and_counts_its_cost(kind: Kind, place: int) -> None:
    made, spec = BLUEPRINTS.get(name_of(place)), SPECS[kind]
    seed, h = made.build(spec, seed_key=1), torch.randn(4, *spec.shape)
    assert seed(h).shape == h.shape
    assert not seed(h).count_nonzero()
    fixed = {name: p.detach().clone() for name, p in seed.named_parameters() if not p.requires_grad}
    assert bool(fixed) == (place == 1)
    after = a_step(seed, h)
    assert after.count_nonzero()
    assert all(torch.equal(dict(seed.named_parameters())[name], value) for name, value in fixed.items())
    assert made.parameters(spec) == sum(p.numel() for p in seed.parameters())
    assert made.flops(spec, 4) >= 0


@pytest.mark.parametrize("kind", USELESS)
def test_a_useless_seed_trains_in_a_slot_of_one_channel(kind: str) -> None:
    seed = BLUEPRINTS.get(useless_name(kind, 1)).build(ONE_CHANNEL, seed_key=1)
    assert a_step(seed, torch.randn(2, *ONE_CHANNEL.shape)).shape == (2, *ONE_CHANNEL.shape)


@pytest.mark.parametrize("kind", Kind)
def test_what_makes_a_placebo_useless_is_true_after_a_step(kind: Kind) -> None:
    spec = SPECS[kind]
    h = torch.randn(4, *spec.shape)
    other = h.clone()
    other[2] *= -1.0  # a layer norm would not see a shift
    rows, bias, constant = (
        BLUEPRINTS.get(useless_name(kind, 1)).build(spec, seed_key=1) for kind in ("other_rows", "bias", "constant")
    )
    before, after = a_step(rows, h), rows(other)
    assert [torch.equal(before[i], after[i]) for i in range(4)] == [True, True, True, False]  # row 3 sees row 2
    for seed in (bias, constant):
        after = a_step(seed, h)
        assert torch.equal(after, seed(other))
        assert torch.equal(after[0], after[1])


@pytest.mark.parametrize("kind", Kind)
def test_a_sample_that_is_alone_in_its_batch_is_not_its_own_other_sample(kind: Kind) -> None:
    spec = SPECS[kind]
    seed, h = BLUEPRINTS.get(useless_name("other_rows", 1)).build(spec, seed_key=1), torch.randn(1, *spec.shape)
    after = a_step(seed, h)
    assert after.count_nonzero()
    assert torch.equal(after, seed(torch.randn(1, *spec.shape)))
    assert not torch.equal(after, seed(torch.cat([h, h]))[:1])


def test_placebos_are_no_candidates_and_their_names_are_taken() -> None:
    assert not any(one.name.startswith("placebo:") for kind in Kind for one in BLUEPRINTS.for_kind(kind))
    assert name_of(0) not in BLUEPRINTS

    def own(spec: SlotSpec) -> nn.Module:
        return nn.Linear(spec.shape[-1], 8)

    for name in ("placebo:bias:0", "placebo:mine"):
        with pytest.raises(ConfigError, match="placebo's"):
            BlueprintRegistry().add(Blueprint(name, (Kind.NC,), 0.1, own))
    with pytest.raises(ConfigError):
        BLUEPRINTS.get("placebo:mine:0")
