"""The paired comparison against other implementations of it, and how often a useless seed gets past its limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from esper.errors import EvidenceMissing
from esper.kasmina.judging.statistics import paired, placebo_limit, stouffer, z_limit
from esper.kasmina.settings import GrowthConfig
from esper.leyline.evidence import SampleLosses
from esper.testing import telling

RANDOM = np.random.default_rng(20260101)


def losses(values, groups=None, shard: str = "gate", fence: int = 3) -> SampleLosses:
    return SampleLosses(shard=shard, fence=fence, losses=tuple(map(float, values)), groups=groups)


def test_the_paired_test_is_the_one_of_scipy():
    control, seeded = RANDOM.gamma(2.0, size=200), RANDOM.gamma(1.8, size=200)

    found = paired(losses(control), losses(seeded))

    assert found.z == pytest.approx(stats.ttest_rel(control, seeded).statistic, rel=1e-12)
    assert found.mean == pytest.approx((control - seeded).mean(), rel=1e-12)
    assert found.sd == pytest.approx(stats.tstd(control - seeded), rel=1e-12)
    assert found.relative_gain == pytest.approx((control - seeded).mean() / control.mean(), rel=1e-12)
    assert (found.count, found.grouped, found.shard, found.fence) == (200, False, "gate", 3)


def test_correlated_samples_are_averaged_per_group_and_groups_are_counted():
    control, seeded = [1.0, 3.0, 5.0, 2.0, 4.0, 9.0], [1.0, 1.0, 2.0, 2.0, 1.0, 8.0]
    groups = (7, 3, 7, 3, 3, 11)  # in any order, of any size: d is 0 3 | 2 0 3 | 1

    found = paired(losses(control, groups), losses(seeded, groups))

    by_hand = [(2 + 0 + 3) / 3, (0 + 3) / 2, 1.0]
    assert (found.count, found.grouped) == (3, True)
    assert found.mean == pytest.approx(sum(by_hand) / 3)
    assert found.z == pytest.approx(stats.ttest_1samp(by_hand, 0.0).statistic)
    assert found.control_mean == pytest.approx(((3 + 2 + 4) / 3 + (1 + 5) / 2 + 9) / 3)


def test_repeating_every_sample_of_a_group_proves_nothing_more():
    control, seeded = RANDOM.gamma(2.0, size=30), RANDOM.gamma(1.8, size=30)
    once = paired(losses(control, tuple(range(30))), losses(seeded, tuple(range(30))))
    groups = tuple(np.repeat(range(30), 5).tolist())
    five_times = paired(losses(np.repeat(control, 5), groups), losses(np.repeat(seeded, 5), groups))
    assert five_times.z == pytest.approx(once.z)
    assert five_times.count == once.count


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, -0.7])
def test_a_difference_that_never_varies_is_no_improvement(shift):
    """The variance of 256 times 0.1 is rounding, not 0: taken at its word it would give a z of 10 to the 16."""
    found = paired(losses([shift] * 256), losses([0.0] * 256))
    assert (found.z, found.sd) == (0.0, 0.0)


def test_one_group_alone_has_no_spread_and_no_z():
    groups = (4, 4, 4)
    found = paired(losses([3.0, 2.0, 4.0], groups), losses([1.0, 1.0, 1.0], groups))
    assert (found.count, found.sd, found.z) == (1, 0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_gives_no_z_that_a_limit_could_let_through(bad):
    found = paired(losses([1.0, 2.0, 3.0]), losses([0.5, bad, 0.5]))
    assert not found.z > -math.inf


@pytest.mark.parametrize(
    "other",
    [
        losses([1.0, 2.0], shard="pick"),
        losses([1.0, 2.0], fence=4),
        losses([1.0, 2.0], groups=(0, 1)),
        losses([1.0, 2.0, 3.0]),
        losses([1.0]),
    ],
    ids=["another shard", "another fence", "grouped", "longer", "shorter"],
)
def test_losses_on_other_samples_cannot_be_compared(other):
    with pytest.raises(EvidenceMissing):
        paired(losses([1.0, 2.0]), other)
    with pytest.raises(EvidenceMissing):
        paired(other, losses([1.0, 2.0]))


def test_one_pair_cannot_be_judged():
    with pytest.raises(EvidenceMissing) as caught:
        paired(losses([1.0]), losses([2.0]))
    assert (caught.value.measured, caught.value.required) == (1, 2)


def test_the_gain_of_a_loss_below_zero_has_the_sign_of_the_improvement():
    """A log-density may be negative; the share of its size that was gained is what counts."""
    better = paired(losses([-1.0, -2.0, -3.0]), losses([-1.5, -2.4, -3.6]))
    assert better.relative_gain == pytest.approx(0.25)


@pytest.mark.parametrize(("seeded", "gain"), [([0.0, 0.0], 0.0), ([0.0, 1.0], -math.inf)])
def test_a_control_without_any_loss_leaves_nothing_to_gain(seeded, gain):
    assert paired(losses([0.0, 0.0]), losses(seeded)).relative_gain == gain


# -- the limit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 14, 128, 2_000])
def test_the_limit_is_students_quantile_with_the_chance_shared_among_all_tests_of_a_run(count):
    assert z_limit(0.05, 400, count) == pytest.approx(stats.t.isf(0.05 / 400, df=count - 1))
    assert z_limit(0.05, 1, count) == pytest.approx(stats.t.isf(0.05, df=count - 1))


def test_a_chance_too_small_to_be_subtracted_from_1_still_gives_a_finite_limit():
    assert 1 - 1e-17 == 1
    assert math.isfinite(z_limit(1e-17, 1, 128))


def test_one_sample_gives_no_limit():
    with pytest.raises(
        EvidenceMissing, check=telling(gate="limit of z", evidence="samples or groups", measured=1, required=2)
    ):
        z_limit(0.05, 400, 1)


RUNS, TESTS, ASKED = 600, 10, 0.05


def runs_that_accept_a_useless_seed(count: int, limit: float, *, grouped: bool) -> int:
    """Of `RUNS` runs with `TESTS` useless seeds each. Grouped: the three samples of a group move together."""
    random, size = np.random.default_rng(count), count * (3 if grouped else 1)
    groups = tuple(np.repeat(range(count), 3).tolist()) if grouped else None
    control = losses(np.zeros(size), groups)

    def useless() -> SampleLosses:
        shared = np.repeat(random.normal(size=count), 3) if grouped else 0.0
        return losses(random.normal(size=size) + shared, groups)

    return sum(any(paired(control, useless()).z > limit for _ in range(TESTS)) for _ in range(RUNS))


def more_than_asked(accepted: int) -> bool:
    """A chance of 5 % per run does not explain so many: they would come once in 1,000 trials."""
    return stats.binomtest(accepted, RUNS, ASKED, alternative="greater").pvalue < 1e-3


@pytest.mark.parametrize("grouped", [False, True], ids=["samples", "groups"])
@pytest.mark.parametrize("count", [3, 14, 40])
def test_a_run_accepts_a_useless_seed_no_more_often_than_was_asked(count, grouped):
    accepted = runs_that_accept_a_useless_seed(count, z_limit(ASKED, TESTS, count), grouped=grouped)
    assert not more_than_asked(accepted)
    assert accepted > RUNS * ASKED / 2  # not by accepting nothing at all


def test_that_simulation_sees_what_the_normal_quantile_would_let_through():
    accepted = runs_that_accept_a_useless_seed(14, stats.norm.isf(ASKED / TESTS), grouped=False)
    assert more_than_asked(accepted)


def test_several_fences_of_the_same_question_count_as_one():
    assert stouffer((2.5,)) == 2.5
    assert stouffer((1.0, 2.0, 3.0, -2.0)) == pytest.approx(2.0)
    zs = (-1.8, -1.8, -1.8)
    assert stouffer(zs) == pytest.approx(stats.combine_pvalues(stats.norm.sf(zs), method="stouffer").statistic)
    assert stouffer(zs) < -3  # small harms add up


@pytest.mark.parametrize("count", [2, 3, 8, 24])
def test_the_limit_of_the_placebos_is_above_the_largest_by_the_spread_of_a_prediction(count):
    gains = [0.01, *[0.001] * (count - 1)]
    found = placebo_limit(gains, 0.05, 12)
    quantile, spread = stats.t.isf(0.05 / 12, df=count - 1), np.std(gains, ddof=1) * (1 + 1 / count) ** 0.5
    assert (found.factor, found.rms, found.mean) == pytest.approx((quantile, spread, np.mean(gains)))
    assert (found.count, found.tests, found.largest) == (count, 12, 0.01)
    assert found.limit == pytest.approx(0.01 + quantile * spread)
    older = found.model_copy(update={"largest": None})
    assert older.limit == pytest.approx(np.mean(gains) + quantile * spread)  # as an older version judged
    harmed = placebo_limit([gain - 1.0 for gain in gains], 0.05, 12)
    assert harmed.limit == pytest.approx(quantile * spread)  # equal harm of all placebos raises no limit
    for diverged in ([0.1, math.inf, 0.1], [-0.1, math.inf]):
        assert placebo_limit(diverged, 0.05, 12).limit == math.inf
    for few in ([], [0.1]):
        with pytest.raises(EvidenceMissing, match="gains of placebos"):
            placebo_limit(few, 0.05, 12)


def of_rule(beside: np.ndarray, candidates: int) -> float:
    return placebo_limit(beside.tolist(), 0.05, candidates).limit


def accepted(
    placebos: int,
    candidates: int,
    limit: Callable[[np.ndarray], float],
    useful: float = 0.0,
    means: tuple[float, float] = (0.0, 0.0),
) -> float:
    """Return the share of simulated tournaments that accept the first candidate, or the useful one if there is one.

    A gain is a true gain, which is the same on pick and gate, and noise of a quarter of its variance on each shard. All
    true gains of useless seeds are normal.

    Args:
        limit: The gains of the placebos of a tournament -> the limit of a gain.
        means: Mean gain of the placebos, and of the useless candidates.
    """
    draw, tries = np.random.default_rng(candidates * placebos), 4_000
    true, beside = (
        mean + draw.normal(size=(tries, count)) for mean, count in ((means[1], candidates), (means[0], placebos))
    )
    true[:, 0] += useful
    pick, gate = (true + 0.5 * draw.normal(size=true.shape) for _ in range(2))
    first = pick.argmax(axis=1)
    limits = np.array([limit(row) for row in beside + 0.5 * draw.normal(size=beside.shape)])
    passes = gate[np.arange(tries), first] > limits
    return float(np.mean(passes & (first == 0) if useful else passes))


@pytest.mark.parametrize(("placebos", "candidates"), [(3, 12), (6, 12), (8, 24), (24, 24)])
def test_the_limit_of_the_placebos_holds_for_the_best_of_all_candidates(placebos, candidates):
    for means in ((0.0, 0.0), (-1.0, -1.0), (-2.0, 0.0)):
        assert accepted(placebos, candidates, lambda beside: of_rule(beside, candidates), means=means) <= 0.05
    if placebos < candidates:
        of_one = accepted(placebos, candidates, lambda beside: of_rule(beside, 1))
        assert of_one > 0.05  # the first is not one candidate among others


def test_the_placebos_of_a_preset_let_a_useful_seed_pass():
    for preset, least in (("lean", 0.85), ("full", 0.85)):
        limits = GrowthConfig(preset=preset)
        each = limits.candidates * limits.max_tournaments
        assert accepted(limits.placebos, limits.candidates, lambda b, n=each: of_rule(b, n), useful=10.0) > least
        assert accepted(3, limits.candidates, lambda b, n=each: of_rule(b, n), useful=10.0) < 0.8
