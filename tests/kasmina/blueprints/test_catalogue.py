"""Blueprints: what may be registered, and what every built-in seed is at birth."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from growing import slot
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper.errors import ConfigError, SeedBuildFailed
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry, blueprint
from esper.kasmina.blueprints.flops import CORRECTED_FLOPS
from esper.kasmina.blueprints.padded import seed_output
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import telling

SHAPES = {Kind.NCHW: (8, 6, 5), Kind.NTC: (11, 8), Kind.NCT: (8, 11), Kind.NC: (8,)}
SMALLEST = {Kind.NCHW: (1, 1, 1), Kind.NTC: (1, 1), Kind.NCT: (1, 1), Kind.NC: (1,)}
BUILT_IN = [(kind, one.name) for kind in Kind for one in BLUEPRINTS.for_kind(kind)]


def make_spec(kind: Kind, shape: tuple[int, ...] | None = None, causal: bool = False, dtype: str = "torch.float32"):
    return slot("blocks.0", kind, shape or SHAPES[kind], causal=causal, dtype=dtype)


def linear(spec: SlotSpec) -> nn.Module:
    return nn.Linear(spec.shape[-1], spec.shape[-1])


def make_blueprint(factory=linear, kinds=(Kind.NC,), risk=0.5, name="mine") -> Blueprint:
    return Blueprint(name, kinds, risk, factory)


@pytest.fixture(params=BUILT_IN, ids=lambda found: f"{found[0]}-{found[1]}")
def built_in(request) -> tuple[Kind, Blueprint]:
    kind, name = request.param
    return kind, BLUEPRINTS.get(name)


# -- the built-in set --------------------------------------------------------------------------------------------


def test_the_built_in_set_of_each_kind_comes_in_the_order_of_names():
    names = {kind: " ".join(one.name for one in BLUEPRINTS.for_kind(kind)) for kind in Kind}
    assert names == {
        Kind.NC: "gated_mlp low_rank mlp norm wide_mlp",
        Kind.NCHW: "bottleneck conv3 conv_block depthwise_separable inverted_bottleneck norm squeeze_excite",
        Kind.NTC: "attention block conv_mlp_15 conv_mlp_3 conv_mlp_7 gated_conv gated_mlp low_rank masked_attention mlp"
        " norm token_shift wide_mlp",
        Kind.NCT: "attention block conv_mlp_15 conv_mlp_3 conv_mlp_7 gated_conv gated_mlp low_rank mlp norm token_shift"
        " wide_mlp",
    }


@pytest.mark.parametrize("shapes", [SHAPES, SMALLEST], ids=["usual", "smallest"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "acausal"])
def test_a_newborn_seed_is_exactly_zero_and_can_learn(built_in, shapes, causal):
    kind, one = built_in
    spec = make_spec(kind, shapes[kind], causal and kind.time is not None)
    seed = one.build(spec, seed_key=3)
    h = torch.randn(4, *spec.shape)
    correction = seed_output(seed, h, None)
    assert correction.shape == h.shape
    assert correction.dtype == h.dtype
    assert not correction.count_nonzero()
    (correction * torch.randn_like(h)).sum().backward()
    gradients = [p.grad for p in seed.parameters() if p.grad is not None]
    assert any(gradient.count_nonzero() for gradient in gradients)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "acausal"])
def test_a_seed_with_channels_first_is_the_same_seed_on_the_transposed_activation(causal):
    first, last = (make_spec(kind, causal=causal) for kind in (Kind.NCT, Kind.NTC))
    h = torch.randn(4, *first.shape)
    for one in BLUEPRINTS.for_kind(Kind.NCT):
        seed, known = one.build(first, seed_key=3), one.build(last, seed_key=3)
        for parameter, same in zip(seed.parameters(), known.parameters(), strict=True):
            assert torch.equal(parameter, same)
            nn.init.uniform_(parameter, -1, 1)
            same.data.copy_(parameter)
        correction = seed(h)
        assert torch.equal(correction, known(h.transpose(1, 2).contiguous()).transpose(1, 2)), one.name
        assert correction.count_nonzero()
        assert correction.is_contiguous(), "the host may call view"
        assert one.flops(first, 4) == one.flops(last, 4)


def test_a_seed_of_three_copies_is_three_seeds_in_a_row_each_with_its_own_weights(built_in):
    kind, one = built_in
    spec = make_spec(kind)
    seed, alone = one.build(spec, seed_key=3, copies=3), one.build(spec, seed_key=3)
    assert torch.equal(flat(seed.copies[0]), flat(alone))
    drawn = [flat(copy) for copy in seed.copies]
    draws_nothing = torch.equal(flat(alone), flat(one.build(spec, seed_key=4)))
    assert draws_nothing or not any(torch.equal(drawn[place], drawn[place - 1]) for place in range(3))
    h = torch.randn(4, *spec.shape)
    assert not seed_output(seed, h, None).count_nonzero()
    for parameter in seed.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    stacked = h
    for copy in seed.copies:
        stacked = stacked + seed_output(copy, stacked, None)
    assert torch.allclose(h + seed_output(seed, h, None), stacked, atol=1e-4)
    assert one.parameters(spec, 3) == 3 * one.parameters(spec) == sum(p.numel() for p in seed.parameters())
    assert one.flops(spec, 4, 3) == 3 * one.flops(spec, 4)


def test_a_whole_block_learns_in_both_of_its_branches_from_the_first_step():
    seed = BLUEPRINTS.get("block").build(make_spec(Kind.NTC, causal=True), seed_key=0)
    (seed(torch.randn(2, 11, 8)) * torch.randn(2, 11, 8)).sum().backward()
    assert seed.attention.outward.weight.grad.count_nonzero()
    assert seed.mlp[-1].weight.grad.count_nonzero()


def test_the_same_key_builds_the_same_bits_and_another_key_others(built_in):
    kind, one = built_in
    first, again, other = (flat(one.build(make_spec(kind), key)) for key in (7, 7, 8))
    assert torch.equal(first, again)
    if one.name not in ("norm", "conv3"):  # one layer, zero: nothing in it is random
        assert not torch.equal(first, other)


def test_a_seed_is_built_in_the_dtype_of_its_slot(built_in):
    kind, one = built_in
    spec = make_spec(kind, dtype="torch.bfloat16")
    h = torch.randn(2, *spec.shape, dtype=torch.bfloat16)
    assert seed_output(one.build(spec, 0), h, None).dtype is torch.bfloat16


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# -- building and cost -------------------------------------------------------------------------------------------


def test_building_leaves_the_random_numbers_of_the_caller_alone():
    states = random.getstate(), np.random.get_state()[2], torch.get_rng_state()

    def draw(spec: SlotSpec) -> nn.Module:
        random.random(), np.random.rand()
        return linear(spec)

    make_blueprint(draw).build(make_spec(Kind.NC), 5)
    assert random.getstate() == states[0]
    assert np.random.get_state()[2] == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_random_numbers_of_numpy_and_python_follow_the_key_too():
    def noisy(_spec: SlotSpec) -> nn.Module:
        module = nn.Linear(2, 1)
        module.weight.data = torch.tensor([[random.random(), np.random.rand()]])
        return module

    first = flat(make_blueprint(noisy).build(make_spec(Kind.NC), 5))
    random.random(), np.random.rand()
    assert torch.equal(first, flat(make_blueprint(noisy).build(make_spec(Kind.NC), 5)))


def test_a_factory_that_raises_is_named_with_its_slot_and_its_own_error():
    def broken(_spec: SlotSpec) -> nn.Module:
        raise RuntimeError("no such kernel")

    with pytest.raises(
        SeedBuildFailed,
        check=telling("RuntimeError", "'no such kernel'", blueprint="mine", slot="blocks.0", doing="build"),
    ):
        make_blueprint(broken).build(make_spec(Kind.NC), 0)


@pytest.mark.parametrize("doing", ["build", "parameters", "flops"])
def test_a_blueprint_is_not_built_in_a_slot_of_another_kind(doing):
    asked = {"build": (0,), "parameters": (), "flops": (1,)}[doing]
    with pytest.raises(SeedBuildFailed, check=telling("NCHW", blueprint="mine", slot="blocks.0")):
        getattr(make_blueprint(), doing)(make_spec(Kind.NCHW), *asked)


def test_parameters_are_counted_as_the_built_seed_has_them(built_in):
    kind, one = built_in
    assert one.parameters(make_spec(kind)) == flat(one.build(make_spec(kind), 0)).numel()


def test_counting_a_seed_of_a_huge_slot_allocates_nothing():
    assert BLUEPRINTS.get("wide_mlp").parameters(make_spec(Kind.NTC, (4, 100_000))) > 10**11


DEPTHWISE = make_blueprint(lambda _: nn.Conv2d(8, 8, 3, padding=1, groups=8), kinds=(Kind.NCHW,))


@pytest.mark.parametrize(
    ("made", "spec", "products"),
    [
        (make_blueprint(), make_spec(Kind.NC, (8,)), 4 * 8 * 8),
        (DEPTHWISE, make_spec(Kind.NCHW, (8, 6, 5)), 4 * 8 * 6 * 5 * 9),  # channels are not counted twice
        *(
            (  # projections, and two products over time
                BLUEPRINTS.get(name),
                make_spec(Kind.NTC, (11, 8), causal=True),
                4 * 11 * (8 * 24 + 8 * 8) + 2 * 4 * 11 * 11 * 8,
            )
            for name in ("attention", "masked_attention")
        ),
    ],
    ids=["linear", "depthwise", "attention", "masked_attention"],
)
def test_flops_are_those_of_the_forward_and_of_both_gradients(made, spec, products):
    assert made.flops(spec, batch=4) == 3 * 2 * products


# -- the registry ------------------------------------------------------------------------------------------------


def test_a_decorated_factory_is_registered_and_still_a_function():
    registry = BlueprintRegistry()

    @blueprint("mixer", kinds=(Kind.NTC,), risk=0.3, mesh=lambda slot: (slot, "head"), registry=registry)
    def mixer(spec: SlotSpec) -> nn.Module:
        return linear(spec)

    assert isinstance(mixer(make_spec(Kind.NTC)), nn.Linear)
    assert "mixer" in registry
    assert registry.get("mixer").mesh("blocks.0") == ("blocks.0", "head")
    assert registry.for_kind(Kind.NC) == ()


def test_a_seed_depends_on_its_slot_alone_unless_it_says_so():
    assert BLUEPRINTS.get("mlp").mesh("blocks.0") == ("blocks.0",)


def test_a_name_is_never_taken_twice_and_the_older_blueprint_stays():
    registry, first = BlueprintRegistry(), make_blueprint()
    registry.add(first)
    with pytest.raises(ConfigError, check=telling(field="blueprint.name", value="mine")):
        registry.add(make_blueprint(factory=lambda spec: linear(spec)))
    assert registry.get("mine") is first


def test_a_user_cannot_replace_a_built_in_blueprint():
    with pytest.raises(ConfigError, check=telling(field="blueprint.name", value="mlp")):
        blueprint("mlp", kinds=(Kind.NC,), risk=0.1)(linear)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, check=telling("'token_shift'", field="blueprint", value="tokenshift")):
        BLUEPRINTS.get("tokenshift")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"risk": 1.1}, "risk"), ({"risk": float("nan")}, "risk"), ({"kinds": ()}, "kinds"), ({"name": ""}, "name")],
)
def test_a_malformed_blueprint_is_refused(wrong, field):
    with pytest.raises(ConfigError, match=field):
        make_blueprint(**wrong)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_is_weighed_by_the_products_it_makes_though_the_cpu_makes_them_in_one_kernel(layers):
    lstm = nn.LSTM(6, 8, num_layers=layers, batch_first=True)
    x_BTC = torch.zeros(3, 5, 6, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=CORRECTED_FLOPS) as counter:
        lstm(x_BTC)[0].sum().backward()
    weights = sum(p.numel() for p in lstm.parameters() if p.dim() == 2)
    assert counter.get_total_flops() == 3 * 2 * 3 * 5 * weights
