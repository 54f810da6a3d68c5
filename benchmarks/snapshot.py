"""Times of the trainer's snapshot in memory and its rollback, compared with the fastest copy of as many bytes."""

from __future__ import annotations

import gc
from itertools import count

from _common import Outcome, Row, Spread, main
from _state import MEBIBYTE, best, copies, in_turns, tensor_bytes, trained

from esper.user_code.process_state import process_state

SIZES = (10 * MEBIBYTE, 100 * MEBIBYTE, 1024 * MEBIBYTE)
RATIO, JUDGED_FROM = 1.3, 100 * MEBIBYTE
TURNS = 5
"""Number of turns in every repetition."""


def measure(repetitions: int) -> Outcome:
    """Measure all sizes. The same state is copied each time, because its values do not matter."""
    rows: list[Row] = []
    spreads: dict[str, Spread] = {}
    with process_state(1):
        for size in SIZES:
            found, of = _measured(size, repetitions)
            label = f"{size // MEBIBYTE} MiB"
            limit = best(found, ["memmove", "numpy", "torch"])
            for what, told in (("keep", "snapshot"), ("roll back", "rollback")):
                rows.append(_row(f"{told} of {label} (s)", Spread(found[what]).median, Spread(found[limit]).median, of))
            spreads |= {f"{name}, {label} (s)": Spread(values) for name, values in found.items()}
            gc.collect()
    return Outcome(rows, spreads)


def _measured(size: int, repetitions: int) -> tuple[dict[str, tuple[float, ...]], int]:
    trainer, generations = trained(size), count(2)
    of = tensor_bytes(trainer.copy_state(0))
    works = {
        **copies(of),
        "keep": lambda: trainer.copy_state(0),
        "roll back": lambda: trainer.roll_back(next(generations)),
    }
    in_turns(works, 1)
    return {name: tuple(values) for name, values in in_turns(works, TURNS * repetitions).items()}, of


def _row(measure: str, value: float, limit: float, of: int) -> Row:
    if of < 0.9 * JUDGED_FROM:
        return Row.told(measure, value, limit)
    return Row.judged(measure, value, limit, f"<= {RATIO} of the best memcpy", value <= RATIO * limit)


if __name__ == "__main__":
    main("snapshot", __doc__, measure)
