"""The trainer's waits for the tournaments of the default task with two managers, over the forecast of `esper plan`.

`incubation.py` measures the same after the trainer's speed, which takes longer.
"""

from __future__ import annotations

from _common import Outcome, Spread, main
from incubation import waits

from esper.user_code.process_state import process_state


def measure(repetitions: int) -> Outcome:
    """Make a forecast and a run for each run seed from 0 on."""
    spreads: dict[str, list[float]] = {}

    def keep(label: str, values: list[float]) -> list[float]:
        spreads.setdefault(label, []).extend(values)
        return values

    with process_state(1):
        rows = waits(repetitions, keep)
    return Outcome(rows, {label: Spread(tuple(values)) for label, values in spreads.items()})


if __name__ == "__main__":
    main("waits", __doc__, measure, repetitions=3)
