"""The chance that a useless seed exceeds the limit of gate G2, so that a run accepts it.

Differences of losses with mean 0 are simulated. The figures of docs/growth.md are from its result file. The chance for
one test is counted. The chance for a run of `RUN` independent tests is computed from it.

Then the limit of the placebos is simulated: gains of useless seeds with mean 0, the same on pick and gate shards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from _common import Outcome, Row, main

from esper.kasmina.judging.statistics import LEAST_FOR_NONE, placebo_limit, z_limit

RUN, ASKED = 400, 0.05
"""Number of tests of a run (`growth.max_tests`), and the chance that any test passes by luck (`growth.false_pass`)."""

LOT = 4000
"""Number of tests that are drawn at a time."""

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DIFFERENCES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Student's t with 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, shape),
    "1 - Exp(1)": lambda rng, shape: 1 - rng.standard_exponential(shape),
}
SAMPLES = (128, 14)
PLACEBOS = tuple((count, *size) for count in (3, 6, 8) for size in ((12, 1), (24, 2)))
"""Number of placebos, of candidates in a tournament, and of tournaments in a run."""
USEFUL = 8.0


def measure(tests: int) -> Outcome:
    """For each distribution and number of samples, count the tests above the limit."""
    rows = []
    for name, draw in DIFFERENCES.items():
        for samples in SAMPLES:
            rng, passed = np.random.default_rng(0), 0
            limit = z_limit(ASKED, RUN, samples)
            for _ in range(tests // LOT):
                d = draw(rng, (LOT, samples))
                z = d.mean(1) / np.sqrt(d.var(1, ddof=1) / samples)
                passed += int((z > limit).sum())
            chance = 1 - (1 - passed / tests) ** RUN
            rows.append(Row.told(f"{name}, {samples} samples: chance that a run accepts a useless seed", chance, ASKED))
    return Outcome([*rows, *(row for case in PLACEBOS for row in beside_placebos(tests, *case))], {})


def beside_placebos(tests: int, placebos: int, candidates: int, tournaments: int) -> list[Row]:
    """Return the share of first tournaments that accept a useless candidate, by limit, and of those that accept one
    with a gain of `USEFUL` times the spread of the useless ones."""
    rng = np.random.default_rng(0)
    best = np.concatenate([rng.standard_normal((LOT, candidates)).max(1) for _ in range(tests // LOT)])
    beside = rng.standard_normal((len(best), placebos))
    useful = np.maximum(USEFUL + rng.standard_normal(len(best)), best)
    factor = placebo_limit([1.0] * placebos, ASKED, candidates * tournaments).factor
    limit, alone = (limits(beside, count) for count in (candidates * tournaments, tournaments))
    case = f"{placebos} placebos, {candidates} candidates, {tournaments} tournaments in a run"
    return [
        Row.told(f"{case}: factor on the rms of the placebos", factor),
        Row.told(f"{case}: share of first tournaments that accept a useless seed", float((best > limit).mean())),
        Row.told(f"{case}: the same, if one candidate counted", float((best > alone).mean())),
        Row.told(f"{case}: the same, with 3 times the rms", float((best > 3 * root_mean_squares(beside)).mean())),
        Row.told(f"{case}: share that accept a gain of {USEFUL:g} spreads", float((useful > limit).mean())),
    ]


def limits(gains: np.ndarray, candidates: int) -> np.ndarray:
    """Return the limit of `placebo_limit` for the gains of each row."""
    most = gains.shape[1]
    factors = np.array([0.0, *(placebo_limit([1.0] * m, ASKED, candidates).factor for m in range(1, most + 1))])
    above = np.maximum(gains, 0.0)
    counts = (gains > 0).sum(1)
    of_all = factors[most] * root_mean_squares(gains)
    of_some = factors[counts] * root_mean_squares(above) * np.sqrt(most / np.maximum(counts, 1))
    few = (counts == 0) & (most < LEAST_FOR_NONE)
    return np.where(few, of_all, np.minimum(of_some, of_all))


def root_mean_squares(gains: np.ndarray) -> np.ndarray:
    """Return the root of the mean square of each row."""
    return np.sqrt((gains**2).mean(1))


if __name__ == "__main__":
    main("false_pass", __doc__, measure, repetitions=400_000)
