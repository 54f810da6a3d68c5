"""Blending: the formula, the ramp, and nothing that is broadcast, cast or moved to make things fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import DependencyViolationError
from esper.kasmina.host.blending import alpha_at, blend_residual


def test_the_seeds_correction_is_added_by_its_share():
    host, seed = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, 0.0], [0.0, -4.0]])
    blended = blend_residual(host, seed, torch.tensor(0.25))
    assert torch.equal(blended, torch.tensor([[3.5, 2.0], [3.0, 3.0]]))


def test_a_seed_without_a_share_changes_no_bit():
    host, seed = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.full((4, 8), 1e30)
    assert torch.equal(blend_residual(host, seed, torch.tensor(0.0)), host)


def test_gradients_reach_host_and_seed_by_their_shares():
    host, seed = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    blend_residual(host, seed, torch.tensor(0.25)).sum().backward()
    assert torch.equal(host.grad, torch.ones(2, 3))
    assert torch.equal(seed.grad, torch.full((2, 3), 0.25))


@pytest.mark.parametrize(
    "seed",
    [torch.zeros(1, 8), torch.zeros(8), torch.zeros(4, 1), torch.zeros(4, 8).double(), torch.zeros(4, 8).to("meta")],
    ids=["broadcast batch", "no batch", "broadcast channel", "dtype", "device"],
)
def test_a_seed_that_does_not_fit_is_refused_and_nothing_is_broadcast(seed):
    with pytest.raises(DependencyViolationError, match="does not fit"):
        blend_residual(torch.zeros(4, 8), seed, torch.tensor(1.0))


def test_the_ramp_is_the_written_one():
    assert [alpha_at(step, 10, 4, 0.8) for step in (9, 10, 11, 12, 13, 14, 99)] == pytest.approx(
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    )


@given(st.integers(0, 10_000), st.integers(0, 5_000), st.integers(1, 500), st.floats(0, 1))
def test_alpha_never_leaves_its_range_never_falls_and_reaches_its_target_exactly(step, start, ramp, target):
    alpha = alpha_at(step, start, ramp, target)
    assert 0 <= alpha <= target
    assert alpha <= alpha_at(step + 1, start, ramp, target)
    assert alpha_at(start + ramp - 1, start, ramp, target) == target
