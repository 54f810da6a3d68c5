"""The chance that a useless seed exceeds the limit of gate G2, so that a run accepts it.

Differences of losses with mean 0 are simulated. The figures of docs/growth.md are from its result file. The chance for
one test is counted. The chance for a run of `RUN` independent tests is computed from it.

Then the limit of the placebos is simulated: gains of useless seeds with mean 0, the same on pick and gate shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from _common import Outcome, Row, main

from esper.kasmina.judging.statistics import placebo_limit, z_limit

RUNS, ASKED = (2, 400), 0.05
"""Numbers of tests of a run, by `growth.tests` tournaments and candidates, and the chance that any test passes by luck
(`growth.false_pass`)."""

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
USEFUL, HARM = 10.0, 2.0


def measure(tests: int) -> Outcome:
    """For each distribution and number of samples, count the tests above the limit."""
    rows = []
    for name, draw in DIFFERENCES.items():
        for samples in SAMPLES:
            rng, passed = np.random.default_rng(0), dict.fromkeys(RUNS, 0)
            for _ in range(tests // LOT):
                d = draw(rng, (LOT, samples))
                z = d.mean(1) / np.sqrt(d.var(1, ddof=1) / samples)
                passed = {run: found + int((z > z_limit(ASKED, run, samples)).sum()) for run, found in passed.items()}
            for run, found in passed.items():
                case = f"{name}, {samples} samples: chance that a run of {run} tests accepts a useless seed"
                rows.append(Row.told(case, 1 - (1 - found / tests) ** run, ASKED))
    return Outcome([*rows, *(row for case in PLACEBOS for row in beside_placebos(tests, *case))], {})


def beside_placebos(tests: int, placebos: int, candidates: int, tournaments: int) -> list[Row]:
    """Return the share of first tournaments that accept a useless candidate, by limit, and of those that accept one
    with a gain of `USEFUL` times the spread of the useless ones."""
    rng = np.random.default_rng(0)
    best = np.concatenate([rng.standard_normal((LOT, candidates)).max(1) for _ in range(tests // LOT)])
    beside = rng.standard_normal((len(best), placebos))
    useful = np.maximum(USEFUL + rng.standard_normal(len(best)), best)
    pairs = np.repeat(rng.standard_normal((len(best), -(-placebos // 2))), 2, axis=1)[:, :placebos]
    narrow = beside * np.where(np.arange(placebos) % 2, 1.0, 0.1)
    factor = placebo_limit([0.0] * placebos, ASKED, candidates * tournaments).factor
    limit, alone = (limits(beside, count) for count in (candidates * tournaments, tournaments))
    harmed = limits(beside - HARM, candidates * tournaments)
    case = f"{placebos} placebos, {candidates} candidates, {tournaments} tournaments in a run"
    return [
        Row.told(f"{case}: factor on the spread of the placebos", factor),
        Row.told(f"{case}: share of first tournaments that accept a useless seed", float((best > limit).mean())),
        Row.told(f"{case}: the same, if one candidate counted", float((best > alone).mean())),
        Row.told(f"{case}: the same, if the placebos harm by {HARM:g} spreads", float((best > harmed).mean())),
        *(
            Row.told(f"{case}: the same, if {what}", float((best > limits(gains, candidates * tournaments)).mean()))
            for what, gains in (
                ("the placebos are equal in pairs", pairs),
                ("every second placebo has a tenth of the spread", narrow),
            )
        ),
        Row.told(f"{case}: share that accept a gain of {USEFUL:g} spreads", float((useful > limit).mean())),
    ]


def limits(gains: np.ndarray, candidates: int) -> np.ndarray:
    """Return the limit of `placebo_limit` for the gains of each row."""
    most = gains.shape[1]
    factor = placebo_limit([0.0] * most, ASKED, candidates).factor
    spread = gains.std(1, ddof=1) * math.sqrt(1 + 1 / most)
    found = np.maximum(gains.max(1), 0.0) + factor * spread
    assert math.isclose(found[0], placebo_limit(gains[0].tolist(), ASKED, candidates).limit)
    return found


if __name__ == "__main__":
    main("false_pass", __doc__, measure, repetitions=400_000)
