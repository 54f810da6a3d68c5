"""Reports the signals that sinks have not confirmed at the end of a run. If the run is resumed, they are sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from esper.emergency.reading import QUEUE, read_queue
from esper.emergency.settings import CONDUCTOR
from esper.telemetry.events import Severity, severe


def report_undelivered(left: Mapping[str, int]) -> None:
    """Report the number of unconfirmed signals of each sink. `left` is the result of `EmergencyService.stop`."""
    for sink, signals in left.items():
        severe("emergency_signals_undelivered", Severity.WARNING, sink=sink, signals=signals)


def undelivered(folder: Path, *, finished: bool) -> tuple[str, ...]:
    """Return one line for people about each sink that has not confirmed all signals of a run, and one about the signals
    that the run has not read. A severe event also reports the signals that the run has not read.

    Args:
        folder: `RUN/emergency`. The folder need not exist.
        finished: True if the run has done its last step. Then only a resume with more epochs reads signals.

    Raises:
        StoreCorrupt: the queue cannot be read.
    """
    if not (folder / QUEUE).is_dir():
        return ()
    waiting, dead = Counter[str](), Counter[str]()
    for held in read_queue(folder / QUEUE).waiting():
        for name, delivery in held.waiting.items():
            (waiting if delivery.dead is None else dead)[name] += 1
    unread = waiting[CONDUCTOR]
    del waiting[CONDUCTOR]
    if unread:
        severe("emergency_signals_undelivered", Severity.WARNING, sink=CONDUCTOR, signals=unread)
    when = "came after the last step; a resume with more epochs reads" if finished else "were not read; a resume reads"
    return (
        *([f"{unread} signals {when} them first"] if unread else []),
        *(f"sink {name}: {number} signals wait, and go out after a resume" for name, number in waiting.items()),
        *(f"sink {name}: {number} dead letters (see `esper queue list`)" for name, number in dead.items()),
    )
