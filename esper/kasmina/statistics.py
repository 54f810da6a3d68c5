"""Paired comparison of two networks on the same samples, and how large z must be when many are compared. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy import special

from esper.errors import EvidenceMissing
from esper.leyline.evidence import PairedLosses, SampleLosses


def paired(control: SampleLosses, seeded: SampleLosses) -> PairedLosses:
    """`d_i = control_i - seeded_i` over the same samples, averaged per group where samples are correlated.

    `z = mean(d) / sqrt(var(d) / n)`, var with n - 1; z is 0 where d never varies: no difference is no improvement.

    Raises:
        EvidenceMissing: the two are not of the same samples, or are fewer than two.

    Source: Student 1908, "The probable error of a mean" (paired differences).
    """
    if (control.shard, control.fence, control.groups) != (seeded.shard, seeded.fence, seeded.groups):
        raise EvidenceMissing("paired test", "losses on the same samples", f"{seeded.shard} at {seeded.fence}")
    left, right = np.asarray(control.losses), np.asarray(seeded.losses)
    if left.shape != right.shape or len(left) < 2:
        raise EvidenceMissing("paired test", "pairs", min(len(left), len(right)), 2)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        base, d = left, left - right
    if control.groups is not None:
        base, d = _group_means(base, control.groups), _group_means(d, control.groups)
    count = len(d)
    with np.errstate(invalid="ignore"):  # a loss that is not finite makes z not-a-number, which passes no limit
        mean = float(d.mean())
        sd = float(d.std(ddof=1)) if d.min() != d.max() else 0.0  # of equal numbers it would be a rounding error
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


def z_limit(false_pass: float, tests: int, *, count: int, grouped: bool) -> float:
    """How large z must be so that `tests` useless seeds together pass with a chance of at most `false_pass`.

    The normal quantile of `1 - false_pass / tests`; for groups Student's t with `count - 1` degrees of freedom, since
    there are few of them and the normal one would pass too often.

    Source: Bonferroni's inequality (Dunn 1961, doi:10.1080/01621459.1961.10482090).
    """
    chance = 1 - false_pass / tests
    if grouped:
        return float(special.stdtrit(count - 1, chance))
    return NormalDist().inv_cdf(chance)


def stouffer(zs: tuple[float, ...]) -> float:
    """Several z of one question as one: `sum(z) / sqrt(k)`.

    Source: Stouffer et al. 1949, "The American Soldier", vol. 1, p. 45.
    """
    return sum(zs) / math.sqrt(len(zs))


def _group_means(values: np.ndarray, groups: tuple[int, ...]) -> np.ndarray:
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(place, weights=values) / np.bincount(place)
