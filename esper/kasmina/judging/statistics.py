"""Paired comparison of two networks on the same samples, and the limit of z for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from esper.errors import EvidenceMissing
from esper.leyline.evidence import PairedLosses, SampleLosses
from esper.leyline.reports import PlaceboBasis


def paired(control: SampleLosses, seeded: SampleLosses) -> PairedLosses:
    """Compare two networks by `d_i = control_i - seeded_i` over the same samples.

    If the losses have groups, d is averaged per group. `z = mean(d) / sqrt(var(d) / n)`, where `var` divides by n - 1.
    If all d are equal, z is 0 by definition, so that two identical networks do not pass as an improvement.

    Raises:
        EvidenceMissing: the losses are of different samples, or there are fewer than two samples.

    Source: Student 1908, "The probable error of a mean" (paired differences).
    """
    if (control.shard, control.fence, control.groups) != (seeded.shard, seeded.fence, seeded.groups):
        raise EvidenceMissing("paired test", "losses on the same samples", f"{seeded.shard} at {seeded.fence}")
    left, right = np.asarray(control.losses), np.asarray(seeded.losses)
    if left.shape != right.shape or len(left) < 2:
        raise EvidenceMissing("paired test", "pairs", min(len(left), len(right)), 2)
    with np.errstate(invalid="ignore"):  # infinity minus infinity is not-a-number, without a warning
        base, d = left, left - right
    if control.groups is not None:
        base, d = _group_means(base, control.groups), _group_means(d, control.groups)
    count = len(d)
    with np.errstate(invalid="ignore"):  # if a loss is not finite, z is not-a-number and passes no limit
        mean = float(d.mean())
        sd = float(d.std(ddof=1)) if d.min() != d.max() else 0.0  # for equal numbers, std returns a rounding error
    return PairedLosses(
        shard=control.shard,
        fence=control.fence,
        count=count,
        grouped=control.groups is not None,
        mean=mean,
        sd=sd,
        z=mean / (sd / math.sqrt(count)) if sd != 0 else 0.0,
        control_mean=float(base.mean()),
    )


def z_limit(false_pass: float, tests: float, count: int) -> float:
    """Return the limit that z must exceed. A useless seed passes with a chance of at most `false_pass / tests`.

    The limit is Student's t quantile of `1 - false_pass / tests` with `count - 1` degrees of freedom, because the
    spread in z is estimated from the same `count` samples or groups. The normal quantile ignores this. With 14 samples
    and 400 tests, it would let about 10 times as many useless seeds pass. The limit is exact for normal differences.
    `docs/growth.md` covers other distributions.

    Args:
        false_pass: Between 0 and 1.
        tests: 1 or more.
        count: Number of samples, or of groups of samples, from which z is computed.

    Raises:
        EvidenceMissing: `count` is below 2, so no spread can be estimated.

    Source: Student 1908; Bonferroni's inequality (Dunn 1961, doi:10.1080/01621459.1961.10482090).
    """
    if count < 2:
        raise EvidenceMissing("limit of z", "samples or groups", count, 2)
    return _upper_quantile(false_pass / tests, count - 1)


def _upper_quantile(chance: float, degrees: int) -> float:
    """Return the value that Student's t with some degrees of freedom exceeds with a chance; 0 for a chance above 0.5,
    because no limit is below that of a coin.
    """
    from scipy import special  # imported here: the import is slow, and few processes need it

    return max(0.0, -float(special.stdtrit(degrees, chance)))  # lower tail, because 1 - 1e-17 rounds to 1


def placebo_limit(gains: Sequence[float], false_pass: float, candidates: int) -> PlaceboBasis:
    """Return the figures of the limit `max(largest, 0) + factor * spread` that a gain must exceed, so that it is not
    like the gains of the placebos.

    The limit lies above the prediction limit of normal numbers, which has the mean of the gains in place of the
    largest. If the m gains and a further one are independent and normal, with any mean and variance, then
    `(further - mean) / spread` has Student's t distribution with m - 1 degrees of freedom. Here `spread` is the
    standard deviation of the m gains times `sqrt(1 + 1 / m)`. The factor is the quantile of
    `1 - false_pass / candidates`.

    **The largest gain takes the place of the mean**, because useless seeds of different kinds and slots have different
    means, so their gains together are not normal. The largest gain is near the mean of the kind and slot that gain
    most.

    On some hosts useless seeds harm. A harm that is the same for all placebos does not change `spread`, and if the
    largest gain is below 0, it counts as 0.

    **All candidates of all tournaments count**, not only the first of each. The first is chosen on the pick shard, and
    judged on the gate shard. But a fork's true loss differs from that of its control, and this difference is the same
    on both shards: so the first of K useless candidates is nearly the largest of K. Bonferroni's inequality holds for
    each choice of the first. Where gains are sampling noise alone, the limit is stricter than needed.

    Args:
        gains: Gains of useless seeds over their controls, two or more. One that is not finite makes the limit infinite.
        false_pass: Between 0 and 1.
        candidates: Number of candidates that count, 1 or more: those of all tournaments and, as a part, of later looks.

    Raises:
        EvidenceMissing: there are fewer than two gains.

    Source: Student 1908; Bonferroni's inequality (Dunn 1961, doi:10.1080/01621459.1961.10482090); prediction limit:
        Hahn and Meeker 1991, "Statistical Intervals", sec. 4.7.
    """
    mean, spread = mean_and_spread(gains)
    factor = _upper_quantile(false_pass / candidates, len(gains) - 1)
    largest = max(gains) if math.isfinite(mean) else math.inf
    return PlaceboBasis(count=len(gains), mean=mean, largest=largest, rms=spread, factor=factor, tests=candidates)


def mean_and_spread(gains: Sequence[float]) -> tuple[float, float]:
    """Return the mean of gains, and their standard deviation times `sqrt(1 + 1 / m)`: the spread of the difference
    between a further gain and the mean. Both are infinite if a gain is not finite.

    Raises:
        EvidenceMissing: there are fewer than two gains.
    """
    count = len(gains)
    if count < 2:
        raise EvidenceMissing("G2", "gains of placebos", count, 2)
    if not all(map(math.isfinite, gains)):
        return math.inf, math.inf
    mean = math.fsum(gains) / count
    squares = math.fsum((gain - mean) ** 2 for gain in gains)
    return mean, math.sqrt(squares / (count - 1) * (1 + 1 / count))


def exact_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share of which `hits` of `count` independent trials are a sample.

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    from scipy import special  # imported here: the import is slow, and few processes need it

    tail = (1 - level) / 2
    low = float(special.betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    return low, float(special.betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0


def stouffer(zs: tuple[float, ...]) -> float:
    """Combine k values of z for the same question into one value, `sum(z) / sqrt(k)`.

    Source: Stouffer et al. 1949, "The American Soldier", vol. 1, p. 45.
    """
    return sum(zs) / math.sqrt(len(zs))


def _group_means(values: np.ndarray, groups: tuple[int, ...]) -> np.ndarray:
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(place, weights=values) / np.bincount(place)
