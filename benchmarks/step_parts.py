"""CPU times of the parts of a supervised step in one process, with empty slots.

The parts are functions of esper that a bare loop does not have. Each part is timed within whole rounds of the text
task, where training has replaced its code and data in the caches of the processor. The time of a part in a round is
divided by the steps of the round. The first round is warm-up. Parts without a function of their own are not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from _bare import BareLoop
from _common import Outcome, Row, Spread, main, scratch
from step_overhead import RUN_ID, TASK

from esper.config.joined import load_config
from esper.emergency.word import EmergencyWord
from esper.setup.survey import survey_of
from esper.telemetry import Telemetry, use
from esper.tolaria import data, trainer
from esper.tolaria.gradient_norm import LargestNorm
from esper.tolaria.step_times import StepTimes
from esper.tolaria.trainer import Trainer
from esper.tolaria.unkept import Unkept
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "norms of the gradients, for the guard": ((LargestNorm, "see"), (trainer, "check_finite")),
    "generators of random numbers": ((data, "seed_by"),),
    "check of the emergency word": ((Trainer, "check_emergency"),),
    "histogram of step times": ((StepTimes, "add"),),
    "search for state that no checkpoint has, at the end of a round": ((Unkept, "check"), (Unkept, "begin_round")),
    "check of the settings of torch, at the end of a round": ((trainer, "check_process"),),
    "state for the policy, at the end of a round": ((Trainer, "_state"),),
    "modes and audits, at both ends of a round": ((Trainer, "_begin_audits"), (Trainer, "_end_audits")),
}
"""Name of a part -> its functions, as (owner, name). No function of a part calls a function of another part."""


@contextmanager
def timed(owner: Any, name: str, add: Callable[[float], None]) -> Iterator[None]:
    """Time every call of a function while the block runs."""
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return original(*arguments, **named)
        finally:
            add(time.thread_time() - began)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


def measure(repetitions: int) -> Outcome:
    """Measure whole trainings. A round of a bare loop comes before each round of the trainer."""
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    with (
        process_state(1),
        scratch() as folder,
        EmergencyWord.create(folder / "word") as word,
        Telemetry.start(folder / "telemetry", "tolaria", RUN_ID) as telemetry,
        use(telemetry),
        ExitStack() as stack,
    ):
        survey, seconds = survey_of(load_task(TASK)[0], load_config()), dict.fromkeys(PARTS, 0.0)
        for part, functions in PARTS.items():
            for owner, name in functions:
                stack.enter_context(timed(owner, name, partial(_add, seconds, part)))
        for _ in range(repetitions):
            live, bare = survey.trainer(RUN_ID, 1, "tolaria", word.halted), BareLoop(survey)
            live.refuse_unkept(survey.changing)
            for fence in range(1, len(survey.fence_steps)):
                last, steps = survey.fence_steps[fence], survey.fence_steps[fence] - survey.fence_steps[fence - 1]
                bare.train(steps)
                seconds.update(dict.fromkeys(PARTS, 0.0))
                live.run_round(fence, last)
                if fence > 1:
                    for part, spent in seconds.items():
                        found[part].append(spent / steps)
    spreads = {part: Spread(tuple(values)) for part, values in found.items()}
    rows = [Row.told(f"{part}, lower quartile (s a step)", one.lower_quartile) for part, one in spreads.items()]
    total = sum(one.lower_quartile for one in spreads.values())
    return Outcome([*rows, Row.told("all these parts (s a step)", total)], spreads)


def _add(seconds: dict[str, float], part: str, spent: float) -> None:
    seconds[part] += spent


if __name__ == "__main__":
    main("step_parts", __doc__, measure, repetitions=3)
