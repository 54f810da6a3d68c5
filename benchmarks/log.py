"""Speed of durable appends in groups of 1, 16 and 256 records, compared with raw writes with fdatasync.

The peer is one pwrite of the same bytes and one fdatasync, on a file in the same folder. A turn makes some raw writes
and some appends of each group, so that the state of the disk is the same for all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from _common import Outcome, Row, Spread, main, scratch

from esper.durable.log import FramedLog

RECORD_BYTES, FRAME_BYTES = 200, 28
"""Bytes of a record, and bytes that a frame adds."""
SYNCS_OF_A_TURN, TURNS = 25, 20
RAW = 0
TARGETS = {1: 0.9, 16: 9.0, 256: 60.0}


def raw_rate(path: Path) -> float:
    """Return records/s if each record is written and synced separately, without a log."""
    data = os.urandom(RECORD_BYTES + FRAME_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        offset = os.fstat(descriptor).st_size

        def append() -> None:
            nonlocal offset
            offset += os.pwrite(descriptor, data, offset)
            os.fdatasync(descriptor)

        return SYNCS_OF_A_TURN / seconds(append)
    finally:
        os.close(descriptor)


def log_rate(log: FramedLog, group: int) -> float:
    """Return records/s if `group` records are appended at a time."""
    records = [(1, os.urandom(RECORD_BYTES))] * group
    return SYNCS_OF_A_TURN * group / seconds(lambda: log.append_many(records))


def seconds(append: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(SYNCS_OF_A_TURN):
        append()
    return time.perf_counter() - start


def measure(repetitions: int) -> Outcome:
    """Measure all rates. Every repetition has new files. Each turn begins with another of the four rates."""
    rates: dict[int, list[float]] = {group: [] for group in (RAW, *TARGETS)}
    with scratch() as folder:
        for repetition in range(repetitions):
            logs = {group: FramedLog.open(folder / f"{repetition}-{group}.log") for group in TARGETS}
            for turn in range(TURNS):
                for group in [*rates][turn % len(rates) :] + [*rates][: turn % len(rates)]:
                    raw = folder / f"{repetition}.raw"
                    rates[group].append(raw_rate(raw) if group == RAW else log_rate(logs[group], group))
            for log in logs.values():
                log.close()
    spreads = {
        "raw pwrite + fdatasync, records/s" if group == RAW else f"appends in groups of {group}, records/s": (
            Spread(tuple(found))
        )
        for group, found in rates.items()
    }
    return Outcome([_row(group, rates[group], rates[RAW]) for group in TARGETS], spreads)


def _row(group: int, rates: list[float], raw: list[float]) -> Row:
    """Return the row of a group. Its ratio is the median of the ratios of the turns."""
    ratio = Spread(tuple(rate / limit for rate, limit in zip(rates, raw, strict=True))).median
    target = f">= {TARGETS[group]:g} times raw"
    name = f"durable records/s in groups of {group}, over raw"
    return Row.judged(name, ratio, 1.0, target, ratio >= TARGETS[group])


if __name__ == "__main__":
    main("log", __doc__, measure)
