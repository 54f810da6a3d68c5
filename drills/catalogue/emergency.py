"""Drills 7, 8 and 9: the emergency queue beyond its cap and its size, without its actor, and without its sink."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial

from drills import expect
from drills.breaking import kill
from drills.drill import Drill
from drills.drill_context import DrillContext
from drills.signalling import SINK, SendsSignals
from esper.config.joined import flattened
from esper.emergency.queue import HALT_PLACES
from esper.emergency.settings import FileSinkConfig
from esper.faults import FaultSpec

MANY = 80
CAP = MANY - 8
"""Signals that a sink may get in a minute, in the drill of the cap."""
DOWN: Mapping[str, object] = {
    "emergency.cap_per_minute": 10_000,
    "emergency.drain_s": 0.5,
    "emergency.attempts": 1000,
    "emergency.longest_retry_s": 1.0,
}
"""Settings with which signals wait for a sink that is down, and the end of the run does not wait for it."""
CAPACITY = 64
"""Places of the queue in the drills of the emergency actor."""
PLACES = CAPACITY - HALT_PLACES
"""The places that signals below HALT may use."""
NONE: Mapping[str, object] = {}
UNCAPPED: Mapping[str, object] = {"emergency.cap_per_minute": 10_000, "emergency.drain_s": 300.0}


def _send(
    drill: DrillContext,
    *faults: FaultSpec,
    settings: Mapping[str, object],
    sink: FileSinkConfig = SINK,
    before: Callable[[], object] = lambda: None,
    refused: int = 0,
    retried: int = 0,
) -> None:
    progress = SendsSignals(drill.undisturbed.first_tournament, MANY, before, refused, retried)
    drill.sent = progress.sent
    drill.run(*faults, progress=progress, settings={**settings, "emergency.sinks": [sink.model_dump()]})


def capped(drill: DrillContext) -> None:
    """Send more signals at once than a sink may get in a minute."""
    _send(drill, settings={"emergency.cap_per_minute": CAP, "emergency.drain_s": 300.0})


def full(drill: DrillContext) -> None:
    """Send more signals at once than the queue has places for."""
    _send(drill, settings={**UNCAPPED, "emergency.capacity": 32})


def killed(drill: DrillContext) -> None:
    """Kill the emergency actor at the second fence after the signals, while its queue is full."""
    full_and_down(drill, kill("emergency.pending", passage=drill.undisturbed.first_tournament + 3))


def down(drill: DrillContext) -> None:
    """Send signals while the sink is down, and train on when the first delivery has failed."""
    _down(drill, settings=DOWN, retried=1)


def full_and_down(drill: DrillContext, fault: FaultSpec, settings: Mapping[str, object] = NONE) -> None:
    """Fill the queue, whose sink is down, and break the emergency actor.

    Args:
        settings: Further config values of the run. The resume has those of the drill's task.
    """
    usual = flattened(drill.config())
    before = {name: usual[name] for name in settings}
    small = {**DOWN, **settings, "emergency.capacity": CAPACITY}
    _down(drill, fault, settings=small, resumed_with=before, refused=MANY - PLACES)


def _down(
    drill: DrillContext,
    *faults: FaultSpec,
    settings: Mapping[str, object],
    resumed_with: Mapping[str, object] = NONE,
    refused: int = 0,
    retried: int = 0,
) -> None:
    """Remove the folder of the sink before the signals are sent, make it after the run, and resume."""
    folder = drill.signals_file.parent
    folder.mkdir()
    sink = SINK.model_copy(update={"path": str(drill.signals_file)})
    gone = partial(shutil.rmtree, folder)
    _send(drill, *faults, settings=settings, sink=sink, before=gone, refused=refused, retried=retried)
    folder.mkdir()
    drill.resume(settings={"emergency.drain_s": 300.0, **resumed_with})


QUEUE_CAPPED = Drill(
    number=7,
    name="queue-capped",
    what="More signals arrive than a sink may get in a minute: it gets no more, the rest waits, and each comes out.",
    act=capped,
    place="in process",
    follows=(
        expect.exit_codes(0),
        expect.signals(MANY),
        expect.counters({"esper.signal.published": MANY, "esper.signal.dropped": 0, "esper.signal.rejected": 0}),
        expect.at_most(CAP),
        expect.same_bits(),
    ),
)
QUEUE_FULL = Drill(
    number=7,
    name="queue-full",
    what="More signals arrive than the queue has places: some are refused to their sender, and none is lost.",
    act=full,
    place="in process",
    follows=(
        expect.exit_codes(0),
        expect.signals(MANY, some_refused=True),
        expect.counters({"esper.signal.rejected": expect.AtLeast(1), "esper.signal.dropped": 0}),
        expect.same_bits(),
    ),
)
EMERGENCY_KILLED = Drill(
    number=8,
    name="emergency-killed",
    what="The emergency actor is killed while its queue is full: it restarts alone, and loses no accepted signal.",
    act=killed,
    follows=(
        expect.exit_codes(0, 0),
        expect.restarted("emergency"),
        expect.replaced_alone("emergency"),
        expect.counters({"esper.actor.restarts": 1, "esper.signal.dropped": 0}),
        expect.within(decide_s=300.0, steps_redone=0),
        expect.full_before_the_fault(PLACES),
        expect.signals(MANY, some_refused=True),
        expect.same_bits(),
    ),
)
SINK_DOWN = Drill(
    number=9,
    name="sink-down",
    what="The sink cannot be written during the run: the signals wait, and go out when it is back.",
    act=down,
    place="in process",
    follows=(
        expect.exit_codes(0, 0),
        expect.signals(MANY),
        expect.counters({"esper.signal.published": MANY, "esper.signal.retried": expect.AtLeast(1)}),
        expect.within(steps_redone=0),
        expect.same_bits(),
    ),
)
