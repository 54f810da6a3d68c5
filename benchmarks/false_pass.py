"""The chance that a useless seed exceeds the limit of gate G2, so that a run accepts it.

Differences of losses with mean 0 are simulated. The figures of docs/growth.md are from its result file. The chance for
one test is counted. The chance for a run of `RUN` independent tests is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from _common import Outcome, Row, main

from esper.kasmina.judging.statistics import z_limit

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
    return Outcome(rows, {})


if __name__ == "__main__":
    main("false_pass", __doc__, measure, repetitions=400_000)
