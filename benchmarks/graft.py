"""Times of growth at a fence, without training and forward passes: admission, gates, and the graft of a seed.

Calls are timed in whole runs of a small task in one process, with default telemetry and a journal on disk. A fence with
a graft is compared with fences of the same runs at which the host was not changed. The time of a fence includes the
observation of the host, the command, its judgement, the journal, and the change of the host. A graft builds and tries
the seed's module. A graft is also measured on the transformer of the text task. Wall and CPU seconds are measured. A
command is admitted several times in succession. The first time takes longer, because the preceding training has filled
the caches of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from _common import Outcome, Row, Spread, main, scratch
from step_overhead import RUN_ID, TASK, seed_plan

from esper import run
from esper.config.joined import load_config
from esper.flow.growth import Growth
from esper.kasmina.registry import admission, seed_registry
from esper.kasmina.registry.seed_registry import SeedRegistry
from esper.leyline.reports import GraftPlan
from esper.setup.survey import survey_of
from esper.telemetry import Telemetry, use
from esper.testing import tiny_config, tiny_task
from esper.tolaria.trainer import Trainer, never
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

ADMISSION_S, GATE_S, GRAFT_S = 200e-6, 1e-3, 50e-3
RUNS_OF_A_REPETITION, ADMISSIONS = 2, 5
CHECKS = ("_authentic", "check_rule")
"""Functions that an admission calls: for the signature, and for the rule of the operation."""


@dataclass
class Calls:
    """Calls of one function: wall seconds, CPU seconds, and the result of `of` for each call."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    found: list[Any] = field(default_factory=list)

    def spreads(self, chosen: Callable[[Any], bool] = lambda _: True) -> tuple[Spread, Spread]:
        """Return wall and CPU seconds of the chosen calls."""
        at = [place for place, found in enumerate(self.found) if chosen(found)]
        return Spread(tuple(self.wall_s[i] for i in at)), Spread(tuple(self.cpu_s[i] for i in at))


def _nothing(given: Sequence[Any], result: Any, again: int) -> None:
    del given, result, again


@contextmanager
def timed(
    owner: Any, name: str, of: Callable[[Sequence[Any], Any, int], Any] = _nothing, *, times: int = 1
) -> Iterator[Calls]:
    """Time every call of a function or method while the block runs.

    Args:
        of: Function of the arguments of a call, its result, and the number of earlier repetitions of the call.
        times: Number of repetitions of each call. It may be more than 1 only if the function changes nothing.
    """
    calls, original = Calls(), getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        for again in range(times):
            wall, cpu = time.perf_counter(), time.process_time()
            result = original(*arguments, **named)
            calls.wall_s.append(time.perf_counter() - wall)
            calls.cpu_s.append(time.process_time() - cpu)
            calls.found.append(of(arguments, result, again))
        return result

    setattr(owner, name, call)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


def measure(repetitions: int) -> Outcome:
    """Measure all times. The first run is warm-up."""
    with process_state(1), scratch() as folder:
        _run(folder / "warm-up", seed=0)
        with ExitStack() as stack:
            admit = stack.enter_context(timed(seed_registry, "admit", lambda *call: call[-1], times=ADMISSIONS))
            judge = stack.enter_context(timed(SeedRegistry, "carry_out", lambda _, answer, __: len(answer.gates)))
            signature, rule = (stack.enter_context(timed(admission, name, partial(_place, count()))) for name in CHECKS)
            apply = stack.enter_context(timed(Trainer, "apply", lambda given, *_: type(given[1])))
            fence = stack.enter_context(timed(Growth, "_advance", lambda *_: _taken(apply)))
            for number in range(RUNS_OF_A_REPETITION * repetitions):
                _run(folder / str(number), seed=number)
        text = _text_grafts(folder, 5 * repetitions)
    with_graft, without = fence.spreads(lambda kinds: GraftPlan in kinds), fence.spreads(lambda kinds: not kinds)
    judged = judge.spreads(lambda gates: gates == 1)
    checks = [calls.spreads(lambda place: place == 0) for calls in (signature, rule)]
    warm, cold = admit.spreads(lambda again: again > 0), admit.spreads(lambda again: again == 0)
    rows: list[Row] = []
    for kind, clock in enumerate(("wall", "CPU")):
        first, again = cold[kind].median, warm[kind].median
        gate, graft = judged[kind].median, text[kind].median
        more = with_graft[kind].median - without[kind].median
        rows += [
            _row(f"admission of a command, after a round of training, {clock} (s)", first, ADMISSION_S, clock),
            Row.told(f"the same admission, repeated at once, {clock} (s)", again, ADMISSION_S),
            Row.told(
                f"checks of the first admission, without its span, {clock} (s)", sum(c[kind].median for c in checks)
            ),
            _row(f"a command with one gate, judged and answered, {clock} (s)", gate, GATE_S, clock),
            _row(f"a fence with a graft over one without, {clock} (s more)", more, GRAFT_S, clock),
            _row(f"a graft in the text task's trainer, {clock} (s)", graft, GRAFT_S, clock),
        ]
    named = {"admission, repeated": warm, "first admission": cold, "a command with one gate": judged}
    named |= {"seeds of a fence with a graft": with_graft, "of a fence without": without, "graft, text": text}
    return Outcome(rows, {f"{name}, {('wall', 'CPU')[i]} s": found[i] for name, found in named.items() for i in (0, 1)})


def _place(numbers: Iterator[int], *_: Any) -> int:
    """Return the number of earlier admissions of the same command."""
    return next(numbers) % ADMISSIONS


def _run(path: Any, *, seed: int) -> None:
    run(tiny_task(), tiny_config(run__dir=str(path), run__seed=seed))


def _taken(apply: Calls) -> Sequence[type]:
    """Return the kinds of the plans that were applied since the last call."""
    kinds, apply.found = tuple(apply.found), []
    return kinds


def _text_grafts(folder: Any, times: int) -> tuple[Spread, Spread]:
    """Graft and remove one seed in the trainer of the text task, `times` times."""
    survey = survey_of(load_task(TASK)[0], load_config())
    with Telemetry.start(folder / "text", "tolaria", RUN_ID) as telemetry, use(telemetry):
        trainer = survey.trainer(RUN_ID, 1, "tolaria", never)
        trainer.train_to(2)
        plan, weights = seed_plan(survey, trainer.step)
        with timed(Trainer, "apply") as calls:
            for number in range(times + 1):
                again = plan.model_copy(update={"command_id": f"command-{number}"})
                trainer.apply(again, {plan.weights_digest: weights})
                trainer.remove(plan.seed_id)
    return Spread(tuple(calls.wall_s[1:])), Spread(tuple(calls.cpu_s[1:]))


def _row(measure: str, value: float, limit: float, clock: str) -> Row:
    if clock == "CPU":
        return Row.told(measure, value, limit)
    return Row.judged(measure, value, limit, f"<= {limit * 1e3:g} ms", value <= limit)


if __name__ == "__main__":
    main("graft", __doc__, measure)
