"""Carries out one episode of a random schedule, and says what did not follow."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from drills import expect
from drills.damaging import Hostile, flip, truncate
from drills.drill import Expectation
from drills.drill_context import DrillContext
from drills.fault_schedule import Damage, End, Episode, Leg, Where
from drills.observed import Observed
from drills.signalling import SINK, SendsSignals
from drills.stop_at_fence import StopAtFence
from esper import InProcess
from esper.archive.history import look_at
from esper.archive.run_directory import checkpoints_folder, reports_folder
from esper.faults import Fault
from esper.flow.progress import Quiet
from esper.flow.tally import Tally
from esper.ground.exit_codes import DONE, DRAINED, INTERRUPTED, STRICT_FAILURE
from esper.leyline.state import RoundState
from esper.setup.survey import Survey

SIGNALS = 20
"""Number of emergency signals that a leg sends."""
DEADLINE_S = 8.0
"""Deadline of the policy in a leg in which it is late."""
MANY_DEATHS: Mapping[str, object] = {"supervision.deaths": 20, "supervision.without_progress": 20}
QUEUE: Mapping[str, object] = {
    "emergency.cap_per_minute": 10_000,
    "emergency.attempts": 1000,
    "emergency.longest_retry_s": 1.0,
}
CODES: Mapping[End, int] = {
    End.DONE: DONE,
    End.STOPPED: DRAINED,
    End.LATE: STRICT_FAILURE,
    End.LATE_IN_C: STRICT_FAILURE,
    End.FAILED: STRICT_FAILURE,
    End.TOO_OFTEN: STRICT_FAILURE,
    End.DRIVER_KILLED: STRICT_FAILURE,
    End.INTERRUPTED: INTERRUPTED,
}
"""Exit code of a leg. In one process, nothing outlives a killed driver, so its code is that of the signal."""
ERRORS: Mapping[End, str] = {
    End.STOPPED: "Drained",
    End.LATE: "PolicyDeadlineExceeded",
    End.LATE_IN_C: "PolicyDeadlineExceeded",
    End.FAILED: "PolicyFailed",
    End.TOO_OFTEN: "RestartIntensityExceeded",
}
"""Error of a leg that is run by this process."""


class Both(Quiet):
    """Passes the progress of a run on to several."""

    def __init__(self, *these: Quiet) -> None:
        self._these = these

    def started(self, survey: Survey, path: Path) -> None:
        """Pass it on."""
        for one in self._these:
            one.started(survey, path)

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Pass it on."""
        for one in self._these:
            one.fence(state, tally)


def carry_out(
    episode: Episode, drill: DrillContext, leaks: Callable[[], tuple[str, ...]]
) -> tuple[Observed, tuple[str, ...]]:
    """Run an episode in the context of its own. Return what it left, and each expectation that was not met.

    Args:
        leaks: Returns what is left behind after the last leg.
    """
    drill.signals_file.parent.mkdir()
    trap = drill.folder / "trap"
    for leg in episode.legs:
        drill.signals_file.parent.mkdir(exist_ok=True)
        _run(leg, drill, begins=not drill.attempts)
        if leg.damage is not None:
            _damage(leg.damage, drill.run_dir, trap)
    found = Observed(drill, leaks())
    findings = [judge(found) for judge in _expected(episode.legs)]
    missed = [f"expected {one.expected}; found {one.found}" for one in findings if not one.met]
    missed += ["the hostile pickle was executed"] * trap.exists()
    _ = found.recoveries, found.steps_redone, found.delivered, found.refused, found.same_bits  # its folder may go
    return found, tuple(missed)


def _expected(legs: Sequence[Leg]) -> list[Expectation]:
    sent = sum(SIGNALS for leg in legs if leg.signals_at is not None)
    errors = [
        expect.error(ERRORS[leg.end], attempt=place)
        for place, leg in enumerate(legs)
        if leg.where in (Where.ACTORS, Where.HERE) and leg.end in ERRORS
    ]
    return [
        expect.exit_codes(*(_code(leg) for leg in legs)),
        *errors,
        expect.faults_fired(),
        *([expect.signals(sent)] if sent else []),
        expect.same_bits(),
        expect.nothing_left(),
    ]


def _code(leg: Leg) -> int:
    if leg.end is End.DRIVER_KILLED and leg.where is Where.COMMAND_HERE:
        return -signal.SIGKILL
    return CODES[leg.end]


def _run(leg: Leg, drill: DrillContext, *, begins: bool) -> None:
    if leg.where in (Where.ACTORS, Where.HERE):
        _run_here(leg, drill, begins=begins)
        return
    here, settings = leg.where is Where.COMMAND_HERE, _settings(leg, drill, begins=begins)
    process = drill.start_command(*leg.faults, in_process=here, resumes=not begins, settings=settings)
    if leg.end is End.INTERRUPTED:
        drill.await_fault(Fault.DELAY)
        os.killpg(process.pid, signal.SIGINT)
    drill.await_command(process, f"esper {'run' if begins else 'resume'}")


def _run_here(leg: Leg, drill: DrillContext, *, begins: bool) -> None:
    stop = StopAtFence(leg.fence if leg.end is End.STOPPED else -1)
    folder = drill.signals_file.parent
    sends = SendsSignals(
        leg.signals_at if leg.signals_at is not None else -1,
        SIGNALS,
        before=(lambda: shutil.rmtree(folder)) if leg.sink_down else (lambda: None),
    )
    do = drill.run if begins else drill.resume
    do(
        *leg.faults,
        on=InProcess() if leg.where is Where.HERE else None,
        progress=Both(stop, sends),
        drain=stop.drain,
        settings=_settings(leg, drill, begins=begins),
    )
    drill.sent += sends.sent


def _settings(leg: Leg, drill: DrillContext, *, begins: bool) -> Mapping[str, object]:
    sink = SINK.model_copy(update={"path": str(drill.signals_file)})
    own = {"emergency.drain_s": 300.0 if leg.end is End.DONE else 0.5, **MANY_DEATHS}
    if leg.end is End.TOO_OFTEN:
        own["supervision.without_progress"] = 2
    late = leg.end in (End.LATE, End.LATE_IN_C)
    own["policy.deadline_s"] = DEADLINE_S if late else drill.config().policy.deadline_s
    return {**QUEUE, "emergency.sinks": [sink.model_dump()], **own} if begins else own


def _damage(damage: Damage, run_dir: Path, trap: Path) -> None:
    last = checkpoints_folder(run_dir) / look_at(run_dir).commits[-1].file
    match damage:
        case Damage.FLIP:
            flip(last)
        case Damage.CUT:
            truncate(last)
        case Damage.HOSTILE:
            last.write_bytes(pickle.dumps(Hostile(trap)))
        case Damage.REPORTS:
            flip(sorted(reports_folder(run_dir).glob("*.log"))[0])
