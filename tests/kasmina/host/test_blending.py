"""Blending: formulas, schedules and the table of modes, against arithmetic that this file writes out itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from growing import graft_plan, slot
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.kasmina.host.alpha_record import AlphaRecord
from esper.kasmina.host.blending import (
    BLENDS,
    blend_alpha,
    blend_of,
    check_fits,
    next_confidence,
    target_alpha,
)
from esper.kasmina.host.formulas import weight_of
from esper.kasmina.host.schedules import SCHEDULES, alpha_at
from esper.leyline.commands import BlendMode, BlendSchedule, BlendSpec
from esper.leyline.slots import Kind, SlotSpec
from esper.leyline.state import BlendReport

SHAPES = {Kind.NCHW: (4, 2, 3), Kind.NTC: (3, 4), Kind.NCT: (4, 3), Kind.NC: (4,)}
"""Shape of one sample, with 4 channels each."""


def slot_of(kind: Kind, dtype: str = "torch.float32") -> SlotSpec:
    return slot("body", kind, SHAPES[kind], dtype=dtype)


def spec(mode: str, **fields: Any) -> BlendSpec:
    return BlendSpec(**({"mode": mode, "ramp_steps": 4} | fields))


def blended(blend: BlendSpec, slot: SlotSpec, host: torch.Tensor, seed: torch.Tensor, alpha: float) -> torch.Tensor:
    weight = weight_of(torch.tensor(alpha, dtype=host.dtype), blend_of(blend).vector(blend, slot), host)
    return blend_of(blend).formula(host, seed, weight)


# -- the formulas ------------------------------------------------------------------------------------------------

SHARE = st.floats(0, 1, width=32)
VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=48, max_size=48)
BLEND = st.one_of(
    st.just(spec("RESIDUAL")),
    st.just(spec("CONVEX")),
    st.builds(lambda v: spec("CHANNEL", channels=tuple(v)), st.lists(SHARE, min_size=4, max_size=4)),
    st.builds(lambda v: spec("CHANNEL", channels=tuple(v), channel_groups=2), st.lists(SHARE, min_size=2, max_size=2)),
    st.builds(
        lambda bounds, gain, tau: spec("CONFIDENCE", gain=gain, threshold=tau, low=bounds[0], high=bounds[1]),
        st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
        st.floats(0.1, 50),
        st.floats(-2, 2),
    ),
)


def by_hand(blend: BlendSpec, kind: Kind, alpha: float, confidence: float | None, h: float, s: float, at: int) -> float:
    """The formulas of docs/growth.md for one element; `at` is its place in a batch of 2 samples."""
    if blend.mode == "RESIDUAL":
        return h + alpha * s
    if blend.mode == "CONFIDENCE":
        assert confidence is not None
        alpha = sorted((blend.low, alpha * confidence, blend.high))[1]
    if blend.mode == "CHANNEL":
        inner = math.prod(SHAPES[kind][1:]) if kind in (Kind.NCHW, Kind.NCT) else 1
        alpha *= blend.channels[at // inner % 4 * len(blend.channels) // 4]
    return (1 - alpha) * h + alpha * s


@settings(max_examples=150, deadline=None)
@given(BLEND, st.sampled_from(Kind), SHARE, VALUES, VALUES, st.lists(st.floats(-3, 3), min_size=2, max_size=5))
def test_every_mode_is_its_formula_and_stays_between_host_and_seed(blend, kind, alpha, host, seed, logits):
    size = 2 * math.prod(SHAPES[kind])
    h, s = (torch.tensor(values[:size], dtype=torch.float64).view(2, *SHAPES[kind]) for values in (host, seed))
    confidence = next_confidence(blend, logits, None)
    target = blend.model_copy(update={"alpha_target": alpha})
    effective = target_alpha(target, confidence).effective

    found = blended(blend, slot_of(kind, "torch.float64"), h, s, effective)

    flat = [found.flatten()[at].item() for at in range(size)]
    for at, (value, mine, its) in enumerate(zip(flat, host, seed, strict=False)):
        assert value == pytest.approx(by_hand(blend, kind, alpha, confidence, mine, its, at), rel=1e-9, abs=1e-9)
        ends = (mine, mine + its) if blend.mode == "RESIDUAL" else (mine, its)
        assert min(ends) - 1e-9 <= value <= max(ends) + 1e-9
    assert 0.0 <= effective <= 1.0


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0.1, 20), st.floats(-3, 3))
def test_the_confidence_is_the_sigmoid_of_the_lead_of_the_largest_logit(logits, gain, tau):
    best = max(range(len(logits)), key=logits.__getitem__)
    lead = logits[best] - max(logits[:best] + logits[best + 1 :])
    blend = spec("CONFIDENCE", gain=gain, threshold=tau)
    assert next_confidence(blend, logits, None) == pytest.approx((1 + math.tanh(gain * (lead - tau) / 2)) / 2)


@pytest.mark.parametrize("logits", [(1e308, -1e308), (0.0, 0.0), (-1e308, -1e308)])
def test_no_finite_logit_overflows(logits):
    for blend in (spec("CONFIDENCE"), spec("CONFIDENCE", gain=1e300, threshold=1e300)):
        assert 0.0 <= next_confidence(blend, logits, None) <= 1.0


def test_a_confidence_follows_the_logits_only_beyond_the_hysteresis():
    blend = spec("CONFIDENCE", gain=1.0, threshold=0.0)

    def logits(confidence: float) -> tuple[float, float]:
        return math.log(confidence / (1 - confidence)), 0.0

    assert next_confidence(blend, logits(0.715), 0.7) == 0.7
    assert next_confidence(blend, logits(0.685), 0.7) == 0.7
    assert next_confidence(blend, logits(0.725), 0.7) == pytest.approx(0.725)
    assert next_confidence(blend, logits(0.675), 0.7) == pytest.approx(0.675)


@pytest.mark.parametrize("mode", [mode for mode in BlendMode if mode is not BlendMode.CONFIDENCE])
def test_no_other_mode_has_a_confidence(mode):
    assert next_confidence(spec(mode), (), None) is None


def test_the_table_has_every_mode_and_every_schedule():
    assert set(BLENDS) == set(BlendMode)
    assert set(SCHEDULES) == set(BlendSchedule)


# -- what is not changed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RESIDUAL", "CONVEX"])
def test_a_seed_without_a_share_changes_no_bit(mode):
    host, seed = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.full((4, 4), 1e30)
    assert torch.equal(blended(spec(mode), slot_of(Kind.NC), host, seed, 0.0), host)


def test_a_residual_seed_is_added_as_it_always_was_to_the_bit():
    made = torch.Generator().manual_seed(0)
    host, seed, alpha = torch.randn(64, 4, generator=made), torch.randn(64, 4, generator=made), 0.3
    assert torch.equal(blended(spec("RESIDUAL"), slot_of(Kind.NC), host, seed, alpha), host + torch.tensor(0.3) * seed)


@pytest.mark.parametrize(("mode", "share"), [("RESIDUAL", 1.0), ("CONVEX", 0.75)])
def test_gradients_reach_host_and_seed_by_their_shares(mode, share):
    host, seed = torch.ones(2, 4, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    blended(spec(mode), slot_of(Kind.NC), host, seed, 0.25).sum().backward()
    assert torch.equal(host.grad, torch.full((2, 4), share))
    assert torch.equal(seed.grad, torch.full((2, 4), 0.25))


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "torch.float16", "torch.float32"])
@pytest.mark.parametrize("mode", BlendMode)
def test_a_blend_keeps_the_hosts_dtype(mode, dtype):
    slot = slot_of(Kind.NC, dtype)
    blend = spec(mode, channels=(0.5, 0.25, 1.0, 0.0)) if mode == "CHANNEL" else spec(mode)
    host = torch.ones(2, 4, dtype=getattr(torch, dtype.removeprefix("torch.")))
    assert blended(blend, slot, host, host, 0.5).dtype == host.dtype


@pytest.mark.parametrize(
    "seed",
    [torch.zeros(1, 8), torch.zeros(8), torch.zeros(4, 1), torch.zeros(4, 8).double(), torch.zeros(4, 8).to("meta")],
    ids=["broadcast batch", "no batch", "broadcast channel", "dtype", "device"],
)
def test_a_seed_that_does_not_fit_is_refused_and_nothing_is_broadcast(seed):
    with pytest.raises(ValueError, match="does not fit the host"):
        check_fits(torch.zeros(4, 8), seed)


# -- the schedules -----------------------------------------------------------------------------------------------


QUARTERS = (0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", QUARTERS),
        ("cosine", [(1 - math.cos(math.pi * share)) / 2 for share in QUARTERS]),
        ("sigmoid", [(math.tanh(6 * share - 3) / math.tanh(3) + 1) / 2 for share in QUARTERS]),
    ],
)
def test_the_ramps_are_the_written_ones(schedule, shares):
    blend = spec("RESIDUAL", schedule=schedule, alpha_target=0.8)
    expected = [0.8 * share for share in (0, *shares, 1, 1)]
    assert [alpha_at(step, 10, blend) for step in (9, 10, 11, 12, 13, 14, 99)] == pytest.approx(expected)


@given(
    st.integers(0, 10_000), st.integers(0, 5_000), st.integers(1, 500), st.floats(0, 1), st.sampled_from(BlendSchedule)
)
def test_alpha_never_leaves_its_range_never_falls_and_reaches_its_target_exactly(step, start, ramp, target, schedule):
    blend = spec("RESIDUAL", ramp_steps=ramp, alpha_target=target, schedule=schedule)
    alpha = alpha_at(step, start, blend)
    assert 0 <= alpha <= target
    assert alpha <= alpha_at(step + 1, start, blend)
    assert alpha_at(start + ramp - 1, start, blend) == target


def test_the_effective_alpha_of_a_confident_blend_is_clamped_and_says_so():
    blend = spec("CONFIDENCE", low=0.2, high=0.6)
    found = [(*blend_alpha(step, 0, blend, 1.0),) for step in range(4)]
    assert found == [(0.25, False), (0.5, False), (0.6, True), (0.6, True)]
    assert (target_alpha(blend, 1.0).effective, blend_alpha(0, 0, blend, 0.1).effective) == (0.6, 0.2)
    assert [blend_alpha(3, 0, spec(mode), None).clamped for mode in ("RESIDUAL", "CONVEX", "CHANNEL")] == [None] * 3


# -- reports -----------------------------------------------------------------------------------------------------


def report(blend: BlendSpec, confidence: float | None, steps: range) -> BlendReport:
    record, plan = AlphaRecord(), graft_plan(blend=blend, confidence=confidence)
    for step in (*steps, steps[-1]):  # the first step of a round is set at the fence, and again when it runs
        record.add(step, blend_alpha(step, 0, blend, confidence))
    found = record.take(plan)
    assert record.take(plan) is None
    assert found is not None
    return found


def test_a_round_is_reported_by_mean_95th_percentile_and_clamped_share():
    ramp = report(spec("RESIDUAL", ramp_steps=20), None, range(20))
    assert (ramp.mode, ramp.mean, ramp.p95, ramp.clamped) == ("RESIDUAL", pytest.approx(0.525), 0.95, None)
    held = report(spec("CHANNEL", ramp_steps=1, channels=(0.0, 0.5, 0.5, 1.0)), None, range(5, 9))
    assert (held.mean, held.p95, held.clamped) == (0.5, 1.0, None)
    sure = report(spec("CONFIDENCE", ramp_steps=4, low=0.2, high=0.6), 1.0, range(4))
    assert (sure.mean, sure.p95, sure.clamped) == (pytest.approx((0.25 + 0.5 + 0.6 + 0.6) / 4), 0.6, 0.5)


@given(st.lists(SHARE, min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 40))
def test_a_report_is_that_of_all_values_one_by_one(vector, ramp, steps):
    blend = spec("CHANNEL", ramp_steps=ramp, channels=tuple(vector))
    found = report(blend, None, range(steps))
    each = sorted(min(1.0, (step + 1) / ramp) * value for step in range(steps) for value in vector)
    assert found.mean == pytest.approx(sum(each) / len(each))
    assert found.p95 == pytest.approx(each[math.ceil(95 * len(each) / 100) - 1])
