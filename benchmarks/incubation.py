"""The trainer's speed while managers incubate seeds, and the trainer's waits for managers at fences.

The speed is measured in runs without growth, and in runs with tournaments that accept no seed. These runs alternate.
The live host is the same in both. The trainer has one core, and all other processes share the other cores. Otherwise,
on a small machine, the conductor and Ray would use the trainer's core. For comparison, two bare loops run at the same
time, because cores share caches and clock frequency.

The waits are measured in runs with growth on all cores. For each of these runs, a forecast of `esper plan` is made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from _bare import BareLoop, Neighbour
from _common import Outcome, Row, Spread, main, scratch

import esper
from actors.embedded_ray import EmbeddedRay
from esper import OnRay
from esper.config.joined import load_config
from esper.flow.progress import Quiet
from esper.flow.result import Result
from esper.flow.tally import Tally
from esper.leyline.incubation import Answer
from esper.leyline.stages import IN_HOST
from esper.leyline.state import RoundState
from esper.setup.forecast import forecast
from esper.setup.survey import survey_of
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

TASK = "esper.tasks.stdlib_text:task"
MANAGERS, STEPS_OF_A_TURN = 1, 20
WAITING_MANAGERS = 2
"""Number of managers in the runs whose waits are measured."""
UNDISTURBED, FORETOLD_WITHIN = 0.97, 0.25

TRAINERS_CORE, *OTHER_CORES = sorted(os.sched_getaffinity(0))

ALONE: dict[str, Any] = {"growth.enabled": False}
NEVER_ACCEPTED: dict[str, Any] = {"growth.margin": 10.0}
"""Settings with which no seed is accepted, because the gain would have to be ten times the control's loss."""


def pin(pid: int, cores: set[int]) -> None:
    """Restrict all threads of a process to some cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


@dataclass
class Incubation:
    """One incubation, and how long the trainer waited for it."""

    fence: int
    candidates: int
    births_s: float
    """Seconds of the wait for the measurements of the candidates."""
    result_s: float = 0.0
    """Seconds of the wait for the result, at the order's due fence."""
    seeds_in_host: int = 0

    @property
    def waited_s(self) -> float:
        return self.births_s + self.result_s


@dataclass
class Stopwatch(Quiet):
    """Follows a run, and records the speed of its rounds and the waits of the trainer for incubations."""

    fence_steps: tuple[int, ...]
    pinned: bool
    """True if the trainer gets a separate core."""
    paces: dict[int, float] = field(default_factory=dict)
    """Fence -> steps/s of the round that began at the fence."""
    incubations: list[Incubation] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)
    _trained_s: float = 0.0
    _waited_s: float = 0.0
    _fence: int = 0
    _due: bool = False

    def working(self, what: str) -> None:
        """Record the beginning of a round or of a wait for a result."""
        self._due = "incubating" in what
        self._waited_s = self._tally.fence_wait_s

    def answer(self, answer: Answer) -> None:
        """Record the wait since the last call: for a result, or for the measurements of candidates."""
        waited_s, self._waited_s = self._tally.fence_wait_s - self._waited_s, self._tally.fence_wait_s
        if self._due:
            self.incubations[-1].result_s, self._due = waited_s, False
        elif answer.order is not None:
            self.incubations.append(Incubation(answer.order.fence, len(answer.order.plans), waited_s))

    def fence(self, state: RoundState, tally: Tally) -> None:
        """Record the figures of the round that ended at a fence."""
        if state.fence == 0 and self.pinned:
            actor: Any = ray.get_actor(f"tolaria-g{state.generation}-{state.run_id[:8]}")  # Any: Ray types it loosely
            pin(ray.get(actor.pid.remote(), timeout=10), {TRAINERS_CORE})
        if state.fence > 0:
            steps = self.fence_steps[state.fence] - self.fence_steps[self._fence]
            self.paces[self._fence] = steps / (tally.training_s - self._trained_s)
        self._tally, self._trained_s, self._fence = tally, tally.training_s, state.fence
        if state.incubating:
            self.incubations[-1].seeds_in_host = sum(seed.stage in IN_HOST for seed in state.seeds)

    def first_tournaments(self) -> list[Incubation]:
        """Return the incubations on a host without seeds that have as many candidates as the first incubation."""
        first = self.incubations[0]
        return [found for found in self.incubations if (found.candidates, found.seeds_in_host) == (first.candidates, 0)]

    def later_tournaments(self) -> list[Incubation]:
        """Return the incubations on a host with a seed."""
        return [found for found in self.incubations if found.seeds_in_host]


def pace_beside_a_neighbour() -> tuple[list[float], list[float]]:
    """Return steps/s of a bare loop alone, and of a bare loop while another bare loop runs."""
    survey = survey_of(load_task(TASK)[0], load_config())
    loop = BareLoop(survey)
    found: dict[bool, list[float]] = {False: [], True: []}
    with Neighbour(TASK) as neighbour:
        pin(os.getpid(), {TRAINERS_CORE})
        for steps in [STEPS_OF_A_TURN] * (survey.total_steps // STEPS_OF_A_TURN // 2):
            for beside in (False, True):
                neighbour.goes_on(beside)
                start = time.monotonic()
                loop.train(steps)
                found[beside].append(steps / (time.monotonic() - start))
        pin(os.getpid(), set(OTHER_CORES))
    return found[False], found[True]


Kept = Callable[[str, list[float]], list[float]]
"""Function that records figures under a label and returns them."""


def run(
    embedded: EmbeddedRay, folder: Path, name: str, seed: int, settings: dict[str, Any], *, pinned: bool
) -> tuple[Stopwatch, Result]:
    """Make one run of the task on actors, and measure it with a `Stopwatch`."""
    task, reference = load_task(TASK)
    told = {"run.seed": seed, "run.dir": str(folder / f"{name}-{seed}"), "growth.managers": MANAGERS}
    config = load_config(None, told | settings)
    watch = Stopwatch(survey_of(task, config).fence_steps, pinned)
    return watch, esper.run(task, config, on=OnRay(embedded), reference=reference, progress=watch)


def paces(repetitions: int, keep: Kept) -> list[Row]:
    """Measure the trainer on a separate core, with and without an incubation at the same time."""
    alone, beside = [], []
    pin(os.getpid(), set(OTHER_CORES))  # processes that start later inherit these cores
    with scratch() as folder, EmbeddedRay(slots=1 + MANAGERS) as embedded:
        for seed in range(repetitions):
            lonely, crowded = pace_beside_a_neighbour()
            keep("bare loop alone, steps/s", lonely)
            keep("bare loop beside another, steps/s", crowded)
            quiet, _ = run(embedded, folder, "alone", seed, ALONE, pinned=True)
            busy, _ = run(embedded, folder, "beside", seed, NEVER_ACCEPTED, pinned=True)
            fences = [incubation.fence for incubation in busy.incubations]
            alone += keep("steps/s without growth", [quiet.paces[fence] for fence in fences])
            beside += keep("steps/s beside an incubation", [busy.paces[fence] for fence in fences])
    pin(os.getpid(), {TRAINERS_CORE, *OTHER_CORES})
    pace, limit = Spread(tuple(beside)).median, Spread(tuple(alone)).median
    one = Spread(tuple(keep("bare loop alone, steps/s", []))).median
    two = Spread(tuple(keep("bare loop beside another, steps/s", []))).median
    return [
        Row.judged("trainer steps/s", pace, limit, f">= {UNDISTURBED} of no growth", pace >= UNDISTURBED * limit),
        Row.told("a bare loop's steps/s beside another: what this machine leaves", two, one),
        Row.told("trainer's share over the machine's own", pace / limit, two / one),
    ]


def waits(repetitions: int, keep: Kept) -> list[Row]:
    """Measure the waits of the default task for its tournaments, on all cores, and compare them with the forecast."""
    task, _ = load_task(TASK)
    first, whole, settings = [], [], {"growth.managers": WAITING_MANAGERS}
    with scratch() as folder, EmbeddedRay(slots=1 + WAITING_MANAGERS) as embedded:
        for seed in range(repetitions):
            foretold = forecast(survey_of(task, load_config(None, {"run.seed": seed, **settings})))
            grown, result = run(embedded, folder, "grown", seed, settings, pinned=False)
            seen = keep("wait for a first tournament (s)", [found.waited_s for found in grown.first_tournaments()])
            keep("first wait foretold (s)", [foretold["fence_wait_first_s"]])
            first += [wait / foretold["fence_wait_first_s"] for wait in seen]
            seen = keep("wait for a second tournament (s)", [found.waited_s for found in grown.later_tournaments()])
            keep("second wait foretold (s)", [foretold["fence_wait_again_s"]])
            both = foretold["fence_wait_first_s"] + sum(foretold["fence_wait_again_s"] for _ in seen)
            whole.append(sum(one.waited_s for one in grown.incubations) / both)
            keep("all fence waits of a run that grows (s)", [result.fence_wait_s])
            keep("wall of a run that grows (s)", [result.wall_s])
    return [
        _foretold("wait for a first tournament over the forecast, median", Spread(tuple(first)).median),
        _at_most("all waits for tournaments of a run over the forecast, median", Spread(tuple(whole)).median),
    ]


def measure(repetitions: int) -> Outcome:
    """Measure speed and waits. Every repetition has another run seed."""
    spreads: dict[str, list[float]] = {}

    def keep(label: str, values: list[float]) -> list[float]:
        spreads.setdefault(label, []).extend(values)
        return values or spreads[label]

    with process_state(1):
        rows = [*paces(repetitions, keep), *waits(repetitions, keep)]
    measured = {label: Spread(tuple(values)) for label, values in spreads.items()}
    rows += [Row.told(label, spread.median) for label, spread in measured.items() if "run that grows" in label]
    return Outcome(rows, measured)


def _at_most(measure: str, ratio: float) -> Row:
    target = f"at most {FORETOLD_WITHIN:.0%} longer than `esper plan` foretold"
    return Row.judged(measure, ratio, 1.0, target, ratio <= 1.0 + FORETOLD_WITHIN)


def _foretold(measure: str, ratio: float) -> Row:
    target = f"within {FORETOLD_WITHIN:.0%} of what `esper plan` foretold"
    return Row.judged(measure, ratio, 1.0, target, abs(ratio - 1.0) <= FORETOLD_WITHIN)


if __name__ == "__main__":
    main("incubation", __doc__, measure)
