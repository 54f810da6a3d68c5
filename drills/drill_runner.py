"""Runs drills one after another: one Ray for all of them, and one undisturbed run for each task and seed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import esper
from actors.embedded_ray import EmbeddedRay
from actors.joined_ray import JoinedRay
from drills import expect
from drills.budgets import budgets_of
from drills.drill import Drill, Finding
from drills.drill_context import DrillContext, Soak
from drills.leaks import Footprint, settled
from drills.memory_watch import MemoryWatch
from drills.observed import Observed
from drills.report import Outcome, phases
from drills.severe_log import refusal, severe_events
from drills.task_under_drill import TaskUnderDrill
from drills.time_line import marks, spans
from drills.undisturbed import Undisturbed
from esper import InProcess, OnRay
from esper.archive.history import read_past
from esper.archive.summary import Summary
from esper.config.joined import RunConfig
from esper.errors import EsperError, in_a_line
from esper.ground.closing import Closing
from esper.leyline.ports import Policy

ALWAYS = (expect.faults_fired(), expect.nothing_left())
"""What every drill expects."""


class DrillRunner(Closing):
    """Runs drills on one task. `close` ends its Ray and removes its folders."""

    def __init__(
        self,
        subject: TaskUnderDrill,
        *,
        keep: Path | None = None,
        soak: Soak | None = None,
        say: Callable[[str], object] = lambda _: None,
        address: str | None = None,
    ) -> None:
        """Args:
        keep: folder in which the run directories stay. None: they are removed after each drill.
        say: shows a line of a long drill at once.
        address: address of a running Ray on this machine, for all drills on actors. None: they get an embedded Ray.
        """
        self._subject, self._keep, self._soak, self._say = subject, keep, soak or Soak(), say
        self._address = address
        self._stack = ExitStack()
        self._ray: EmbeddedRay | JoinedRay | None = None
        self._undisturbed: Undisturbed | None = None

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """End Ray, and remove the folders of the drills."""
        self._stack.close()

    def run(self, drills: Iterable[Drill], told: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
        """Run drills in order. `told` receives each outcome at once."""
        outcomes = []
        for drill in drills:
            outcomes.append(self.run_one(drill))
            told(outcomes[-1])
        return outcomes

    def run_one(self, drill: Drill) -> Outcome:
        """Run one drill. An error of the drill itself makes it fail, and is in the outcome."""
        if drill.needs:
            return _failed(drill, f"needs {drill.needs}, which esper does not have yet")
        began = time.monotonic()
        try:
            undisturbed = self.undisturbed()
            place = self._place_of(drill)
        except EsperError as error:
            return _failed(drill, in_a_line(error), time.monotonic() - began)
        with self._folder(drill) as folder:
            before = Footprint.now()
            context = DrillContext(
                self._subject, folder, place, undisturbed, self._soak, self._say, self._address is None
            )
            try:
                with MemoryWatch() as memory:
                    drill.act(context)
                observed = Observed(context, settled(before), memory.peak_bytes)
                return _outcome(drill, observed, time.monotonic() - began)
            except Exception as error:  # of the drill, and not of a run: those are in the attempts
                return _failed(drill, in_a_line(error), time.monotonic() - began)

    @property
    def compared_with(self) -> Summary | None:
        """The end of the undisturbed run. None: no drill needed it."""
        return self._undisturbed.summary if self._undisturbed is not None else None

    def undisturbed(self) -> Undisturbed:
        """Return the run of the task that nothing disturbs, in this process. It is made once."""
        if self._undisturbed is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="drill-of-esper-")))
            config = self._subject.config({"run.dir": str(folder / "run")})
            result = esper.run(self._subject.task, config, reference=self._subject.reference)
            told = {found for event in severe_events(folder / "run") if (found := refusal(event)) is not None}
            self._undisturbed = Undisturbed(result, read_past(folder / "run").entries, frozenset(told))
        return self._undisturbed

    @contextmanager
    def _folder(self, drill: Drill) -> Iterator[Path]:
        if self._keep is None:
            with tempfile.TemporaryDirectory(prefix="drill-of-esper-") as made:
                yield Path(made)
            return
        folder = self._keep / drill.name
        folder.mkdir(parents=True)
        yield folder

    def _place_of(self, drill: Drill) -> Callable[[Policy | None], InProcess | OnRay]:
        if drill.place == "in process":
            return lambda policy: InProcess(policy=policy)
        if self._ray is None:
            self._ray = self._ray_for(self._subject.config({}))
            self._stack.callback(self._ray.close)
        ours = self._ray
        return lambda policy: OnRay(ours, policy)

    def _ray_for(self, config: RunConfig) -> EmbeddedRay | JoinedRay:
        slots, threads = 1 + config.growth.managers, config.run.threads
        if self._address is not None:
            return JoinedRay(self._address, slots=slots, threads=threads)
        return EmbeddedRay(slots=slots, threads=threads, deadline_s=2 * config.ray.start_deadline_s)


def _outcome(drill: Drill, observed: Observed, wall_s: float) -> Outcome:
    findings = tuple(judge(observed) for judge in (*drill.follows, *ALWAYS))
    failure = observed.failure
    return Outcome(
        drill=drill,
        findings=findings,
        error=str(failure["error"]) if failure is not None else None,
        fault_fired=len(observed.firings),
        phases_s=phases(observed.recoveries),
        steps_redone=observed.steps_redone,
        signals_lost=observed.signals_lost,
        signals_duplicated=observed.signals_duplicated,
        same_bits=observed.same_bits,
        leaks=observed.leaks,
        trace_id=observed.trace_id,
        wall_s=wall_s,
        recoveries=tuple(observed.recoveries),
        peak_memory_bytes=observed.peak_memory_bytes,
        counters=dict(sorted(observed.counters.items())) if observed.counters is not None else None,
        budgets=budgets_of(drill.follows, observed),
        rollbacks=tuple(observed.rollbacks) if not observed.context.parts else (),
        ended=observed.ended,
        spans=spans(observed),
        marks=marks(observed),
        notes=tuple(observed.context.notes),
    )


def _failed(drill: Drill, why: str, wall_s: float = 0.0) -> Outcome:
    return Outcome(
        drill=drill,
        findings=(Finding("a drill that can be made", why, False),),
        error=None,
        fault_fired=0,
        phases_s=phases(()),
        steps_redone=None,
        signals_lost=None,
        signals_duplicated=None,
        same_bits=None,
        leaks=(),
        trace_id=None,
        wall_s=wall_s,
    )
