"""The sanity probe: planted leakers show, honest seeds do not, and nothing unmeasured passes for clean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from growing import Look, slot
from torch import Tensor, nn
from torch.nn.functional import pad

from esper.errors import DependencyViolationError, EvidenceMissing, SeedBuildFailed
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.blueprints.ntc import TimeConv
from esper.kasmina.blueprints.seed_modules import zeroed
from esper.kasmina.judging.sanity import SeedSanity, probe_seed
from esper.leyline.slots import Kind, SlotSpec
from esper.testing import telling

SHAPES = {Kind.NCHW: (8, 6, 5), Kind.NTC: (9, 8), Kind.NCT: (8, 9), Kind.NC: (8,)}
BUILT_IN = [
    (kind, one.name, causal)
    for kind in Kind
    for one in BLUEPRINTS.for_kind(kind)
    for causal in ((True, False) if kind.time is not None else (False,))
]
CLEAN = 1e-9


def make_spec(kind: Kind, *, causal: bool = False, independent: bool = True, shape: tuple[int, ...] | None = None):
    return slot("blocks.0", kind, shape or SHAPES[kind], causal=causal, samples_independent=independent)


def probe(module: nn.Module, spec: SlotSpec, samples: int = 3) -> SeedSanity:
    h = torch.randn(samples, *spec.shape, generator=torch.Generator().manual_seed(1))
    return probe_seed(module, spec, h, "planted")


def cheat(see: Callable[[Tensor], object] | nn.Module, last: nn.Module | None = None) -> nn.Module:
    """A seed that looks where `see` says and hides it behind a zeroed last layer."""
    return nn.Sequential(see if isinstance(see, nn.Module) else Look(see), last or zeroed(nn.Linear(8, 8)))


@pytest.mark.parametrize(("kind", "name", "causal"), BUILT_IN, ids=lambda value: str(value))
def test_every_built_in_seed_is_clean(kind, name, causal):
    spec = make_spec(kind, causal=causal)
    seen = probe(BLUEPRINTS.get(name).build(spec, seed_key=0), spec)
    assert (seen.shape, seen.dtype, seen.parameters_finite) == (spec.shape, spec.dtype, True)
    assert seen.sample_leak <= CLEAN
    if causal:
        assert seen.causality_leak <= CLEAN
    else:
        assert seen.causality_leak is None


@pytest.mark.parametrize("name", ["conv_mlp_3", "conv_mlp_7", "conv_mlp_15", "gated_conv", "attention", "block"])
def test_a_seed_built_for_a_slot_that_is_not_causal_looks_ahead_and_would_be_seen(name):
    seed = BLUEPRINTS.get(name).build(make_spec(Kind.NTC), seed_key=0)
    assert probe(seed, make_spec(Kind.NTC, causal=True)).causality_leak > 1e-3


class OnlyAt(nn.Module):
    """Lets position t see position t + 1, at one t alone."""

    def __init__(self, t: int) -> None:
        super().__init__()
        self.t = t

    def forward(self, x: Tensor) -> Tensor:
        seen = x.clone()
        seen[:, self.t] += x[:, self.t + 1]
        return seen


@pytest.mark.parametrize(
    "see",
    [
        TimeConv(8, 3, causal=False),
        lambda x: x + x.mean(dim=1, keepdim=True),
        lambda x: x.flip(1),
        lambda x: pad(x, (0, 0, 0, 1))[:, 1:],
        OnlyAt(0),
        OnlyAt(7),
    ],
    ids=["same-padded convolution", "mean over time", "reversed time", "next token", "first pair", "last pair"],
)
def test_a_seed_that_looks_ahead_is_seen_though_its_last_layer_is_zero(see):
    assert probe(cheat(see), make_spec(Kind.NTC, causal=True)).causality_leak > 1e-3


@pytest.mark.parametrize(("padding", "leaks"), [((1, 1), True), ((2, 0), False)], ids=["same-padded", "left-padded"])
def test_a_convolution_that_looks_ahead_is_seen_where_time_is_the_last_dimension(padding, leaks):
    seed = nn.Sequential(nn.ConstantPad1d(padding, 0.0), nn.Conv1d(8, 8, 3), zeroed(nn.Conv1d(8, 8, 1)))
    leak = probe(seed, make_spec(Kind.NCT, causal=True)).causality_leak
    assert leak > 1e-3 if leaks else leak <= CLEAN


def test_a_seed_that_looks_ahead_beyond_the_first_chunk_of_positions_is_seen():
    spec = make_spec(Kind.NTC, causal=True, shape=(70, 8))
    assert probe(cheat(OnlyAt(68)), spec).causality_leak > 1e-3
    assert probe(cheat(TimeConv(8, 7, causal=True)), spec).causality_leak <= CLEAN


class Shut(nn.Module):
    """Looks ahead, times a product of gates that are shut for weights below 0."""

    def __init__(self, signs: tuple[float, ...]) -> None:
        super().__init__()
        self.widths = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in signs)
        self.signs = signs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        open_by = [(sign * width).relu() for sign, width in zip(self.signs, self.widths, strict=True)]
        return torch.stack(open_by).prod() * x.roll(-1, 1)


@pytest.mark.parametrize("signs", [(1.0,), (-1.0,), (1.0, 1.0)], ids=str)
def test_a_gate_that_is_shut_by_chance_hides_no_leak(signs):
    assert probe(cheat(Shut(signs)), make_spec(Kind.NTC, causal=True)).causality_leak > 1e-3


@pytest.mark.parametrize(
    "see",
    [lambda x: x.roll(4, 0), lambda x: x - x.mean(0, keepdim=True) if len(x) >= 8 else x],
    ids=["four samples on", "a mean of many"],
)
def test_a_seed_that_mixes_only_samples_of_a_whole_batch_is_seen(see):
    assert probe(cheat(see), make_spec(Kind.NC), samples=16).sample_leak > 1e-3


class InModeOnly(nn.Module):
    """Mixes samples, or times, in one mode alone."""

    def __init__(self, training: bool, dim: int) -> None:
        super().__init__()
        self.leaky, self.dim = training, dim

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(dim=self.dim, keepdim=True) if self.training is self.leaky else x


@pytest.mark.parametrize("training", [True, False])
def test_a_leak_in_one_mode_alone_is_seen(training):
    spec = make_spec(Kind.NTC, causal=True)
    assert probe(cheat(InModeOnly(training, dim=1)), spec).causality_leak > 1e-3
    assert probe(cheat(InModeOnly(training, dim=0)), spec).sample_leak > 1e-3


@pytest.mark.parametrize(
    ("kind", "see"),
    [
        (Kind.NC, lambda x: x + x.mean(dim=0, keepdim=True)),
        (Kind.NC, lambda x: x.flip(0)),
        (Kind.NC, nn.BatchNorm1d(8)),
        (Kind.NTC, lambda x: x - x.mean(dim=(0, 1))),
        (Kind.NCT, nn.BatchNorm1d(8)),
        (Kind.NCHW, nn.BatchNorm2d(8)),
    ],
    ids=[
        "batch mean",
        "other sample",
        "batch norm",
        "batch mean over time",
        "batch norm over time",
        "batch norm over images",
    ],
)
def test_a_seed_that_mixes_samples_is_seen_though_its_last_layer_is_zero(kind, see):
    pointwise = {Kind.NCHW: nn.Conv2d(8, 8, 1), Kind.NCT: nn.Conv1d(8, 8, 1)}
    last = zeroed(pointwise[kind]) if kind in pointwise else None
    assert probe(cheat(see, last), make_spec(kind)).sample_leak > 1e-3


def test_a_causal_slot_sees_batch_statistics_as_a_leak_through_time():
    class OverTime(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    spec = make_spec(Kind.NTC, causal=True, independent=False)
    assert probe(cheat(OverTime(8)), spec).causality_leak > 1e-3


def test_a_leak_shows_on_constant_activations_too():
    spec = make_spec(Kind.NTC, causal=True)
    seen = probe_seed(cheat(lambda x: x.flip(1) + x.flip(0)), spec, torch.zeros(3, *spec.shape), "planted")
    assert seen.causality_leak > 1e-3
    assert seen.sample_leak > 1e-3


def test_activations_drawn_under_a_common_key_hide_no_leak_behind_a_norm():
    spec = make_spec(Kind.NTC, causal=True)
    h = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1)
    cheater = cheat(lambda x: nn.functional.layer_norm(x, (8,), eps=0).flip(1))
    assert probe_seed(cheater, spec, h, "planted").causality_leak > 1e-3


def test_dropout_is_no_leak():
    spec = make_spec(Kind.NTC, causal=True)
    seen = probe(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), spec)
    assert (seen.causality_leak, seen.sample_leak) == (0.0, 0.0)


def test_what_the_slot_does_not_ask_for_is_not_measured():
    seen = probe(nn.Linear(8, 8), make_spec(Kind.NC, independent=False))
    assert (seen.causality_leak, seen.sample_leak) == (None, None)


def test_a_wrong_shape_is_reported_and_leaks_are_left_unmeasured():
    seen = probe(nn.Linear(8, 7), make_spec(Kind.NTC, causal=True))
    assert seen.shape == (9, 7)
    assert (seen.causality_leak, seen.sample_leak) == (None, None)


def test_a_wrong_dtype_in_evaluation_alone_is_reported():
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else x.double()

    assert probe(Doubling(), make_spec(Kind.NC)).dtype == "torch.float64"


def test_parameters_are_counted_and_looked_at_as_they_are():
    seed = nn.Linear(8, 8)
    assert (probe(seed, make_spec(Kind.NC)).parameters, probe(seed, make_spec(Kind.NC)).parameter_bytes) == (72, 288)
    seed.bias.data[3] = float("nan")
    assert not probe(seed, make_spec(Kind.NC)).parameters_finite


def test_the_probe_leaves_the_seed_and_the_random_numbers_as_they_were():
    seed = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train()
    before, state = {k: v.clone() for k, v in seed.state_dict().items()}, torch.get_rng_state()
    h = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    probe_seed(seed, make_spec(Kind.NC), h, "planted")
    assert all(torch.equal(before[k], v) for k, v in seed.state_dict().items())
    assert seed.training
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_that_raises_is_named_with_its_slot_and_its_own_error():
    with pytest.raises(
        SeedBuildFailed, check=telling("RuntimeError", blueprint="planted", slot="blocks.0", doing="forward")
    ):
        probe(nn.Linear(5, 8), make_spec(Kind.NC))


@pytest.mark.parametrize(
    ("see", "why"),
    [
        (lambda x: (x, x), "not a tensor"),
        (lambda x: x.mean(dim=0, keepdim=True), "3 samples in"),
        (lambda x: (x * 1e200).exp(), "not finite"),
    ],
    ids=["a tuple", "no batch", "overflow"],
)
def test_an_output_that_cannot_be_measured_is_a_failure_not_a_clean_bill(see, why):
    with pytest.raises(SeedBuildFailed, match=why):
        probe(Look(see), make_spec(Kind.NC))


def test_one_sample_alone_says_nothing_about_independence():
    with pytest.raises(
        EvidenceMissing,
        check=telling(gate="G0", evidence="samples in the batch that tests independence", measured=1, required=2),
    ):
        probe(nn.Linear(8, 8), make_spec(Kind.NC), samples=1)


def test_an_activation_of_another_shape_is_refused():
    with pytest.raises(
        DependencyViolationError,
        check=telling(
            subject="slot blocks.0", missing="an activation of its shape and type, as the plan saw it: torch.float32"
        ),
    ):
        probe_seed(nn.Linear(8, 8), make_spec(Kind.NC), torch.zeros(3, 9), "planted")
