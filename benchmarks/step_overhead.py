"""Time of a supervised step in one process.

A step with empty slots is compared with a step of a bare loop. It is also compared with a bare loop that has two of the
promises of a supervised step: a guard, and random numbers that depend on the step alone. A step with a seed is compared
with a bare loop in which the seed was inserted by hand. A supervised step has default telemetry, the guard, the check
of the emergency word, and the checks at the end of each round. All loops train the same network on the same batches, in
alternating rounds, and must end with the same bits. The rounds up to the graft are warm-up. CPU seconds are measured,
too, because they can be compared on a busy machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch
from _bare import BareLoop, LoopWithGuard, LoopWithSeed
from _common import Outcome, Row, Spread, main, scratch

from esper.config.joined import load_config
from esper.emergency.word import EmergencyWord
from esper.ground.tensors import from_bytes
from esper.kasmina.incubation.planning import plan_seed
from esper.leyline.commands import BlendSpec, Candidate
from esper.leyline.reports import GraftPlan
from esper.setup.survey import Survey, survey_of
from esper.telemetry import Telemetry, use
from esper.tolaria.trainer import Trainer
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

TASK, SLOT, BLUEPRINT = "esper.tasks.stdlib_text:task", "blocks.0", "mlp"
EMPTY_RATIO, EMPTY_S, SEEDED_RATIO = 1.02, 150e-6, 1.05
GRAFTED_AT = 1
"""Number of rounds before the graft. The round of the graft is not measured."""
RUN_ID = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10"

Seconds = tuple[float, float]
"""Wall seconds and CPU seconds of one step, as the mean of a round."""


def measure(repetitions: int) -> Outcome:
    """Measure whole trainings of five loops, in alternating rounds. Each repetition begins with another loop."""
    found: dict[str, list[Seconds]] = {}
    with (
        process_state(1),
        scratch() as folder,
        EmergencyWord.create(folder / "word") as word,
        Telemetry.start(folder / "telemetry", "tolaria", RUN_ID) as telemetry,
        use(telemetry),
    ):
        survey = survey_of(load_task(TASK)[0], load_config())
        calls = _calls_of_a_step(survey, word.halted)
        for repetition in range(repetitions):
            for name, seconds in _trained(survey, word.halted, repetition).items():
                found.setdefault(name, []).extend(seconds)
    wall, cpu = ({name: Spread(tuple(one[kind] for one in all_)) for name, all_ in found.items()} for kind in (0, 1))
    rows = [
        *_rows("slots empty", wall, cpu, "trainer", "bare", EMPTY_RATIO, EMPTY_S),
        *_rows("slots empty", wall, cpu, "trainer", "bare with a guard", None, 0.0),
        *_rows("one residual seed", wall, cpu, "trainer with a seed", "seed by hand", SEEDED_RATIO, 0.0),
        *_rows("one residual seed, supervision apart", wall, cpu, "trainer with a seed", "trainer", None, 0.0),
        *_rows("the same by hand", wall, cpu, "seed by hand", "bare", None, 0.0),
        Row.told("calls of functions in a step, slots empty: trainer over bare", *calls),
    ]
    spreads = {
        f"step, {name}, {what} s": spreads[name] for what, spreads in (("wall", wall), ("CPU", cpu)) for name in found
    }
    return Outcome(rows, spreads)


def _trained(survey: Survey, halted: Callable[[], bool], repetition: int) -> dict[str, list[Seconds]]:
    """Train five networks from the first step to the last. Return the seconds of a step in each measured round."""
    trainer, grown = (survey.trainer(RUN_ID, 1, "tolaria", halted) for _ in range(2))
    for one in (trainer, grown):
        one.refuse_unkept(survey.changing)
    bare, guarded, by_hand = BareLoop(survey), LoopWithGuard(survey), LoopWithSeed(survey)
    plan, weights = seed_plan(survey, survey.fence_steps[GRAFTED_AT])
    seed = survey.blueprints.get(BLUEPRINT).build(_spec(survey), seed_key=0)
    seed.load_state_dict(from_bytes(weights))

    found: dict[str, list[Seconds]] = {}
    for fence in range(1, len(survey.fence_steps)):
        last, steps = survey.fence_steps[fence], survey.fence_steps[fence] - survey.fence_steps[fence - 1]
        if fence == GRAFTED_AT + 1:
            grown.apply(plan, {plan.weights_digest: weights})
            by_hand.insert(plan, seed)
        loops: dict[str, Callable[[], object]] = {
            "trainer": lambda fence=fence, last=last: trainer.run_round(fence, last),
            "bare": lambda steps=steps: bare.train(steps),
            "bare with a guard": lambda steps=steps: guarded.train(steps),
            "trainer with a seed": lambda fence=fence, last=last: grown.run_round(fence, last),
            "seed by hand": lambda steps=steps: by_hand.train(steps),
        }
        for name in islice(cycle(loops), repetition % 5, repetition % 5 + 5):
            wall, cpu = time.perf_counter(), time.process_time()
            loops[name]()
            seconds = (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps
            if fence > GRAFTED_AT + 1:
                found.setdefault(name, []).append(seconds)
    _check_bits(trainer, bare, guarded, grown, by_hand)
    return found


def _calls_of_a_step(survey: Survey, halted: Callable[[], bool]) -> tuple[int, int]:
    """Count the calls of Python functions and built-in functions, in a step of the trainer and in a step of the bare
    loop.

    The counts are the same on a busy machine.
    """
    trainer, bare = survey.trainer(RUN_ID, 1, "tolaria", halted), BareLoop(survey)
    trainer.train_to(1)  # the optimizers make their state in the first step
    bare.train(1)
    return _calls_in(trainer._one_step), _calls_in(lambda: bare.train(1))


def _calls_in(work: Callable[[], object]) -> int:
    events: list[str] = []
    sys.setprofile(lambda _frame, event, _function: events.append(event))
    try:
        work()
    finally:
        sys.setprofile(None)
    return events.count("call") + events.count("c_call")


def seed_plan(survey: Survey, step: int) -> tuple[GraftPlan, bytes]:
    growth = survey.config.growth
    plan, weights = plan_seed(
        Candidate(slot=SLOT, blueprint_id=BLUEPRINT, seed_id="seed-1"),
        _spec(survey),
        survey.blueprints.get(BLUEPRINT),
        run_id=RUN_ID,
        generation=1,
        command_id="command-1",
        run_seed=survey.config.run.seed,
        fence=GRAFTED_AT,
        step=step,
        ordinal=0,
        blend=BlendSpec(mode="RESIDUAL", ramp_steps=growth.ramp_steps),
        warmup_steps=growth.warmup_steps,
    )
    return plan.model_copy(update={"isolated": growth.isolate_until != "none"}), weights


def _spec(survey: Survey) -> Any:  # Any: SlotSpec
    return next(spec for spec in survey.specs if spec.path == SLOT)


def _check_bits(trainer: Trainer, bare: BareLoop, guarded: BareLoop, grown: Trainer, by_hand: LoopWithSeed) -> None:
    pairs = [*zip(trainer.host.parameters(), bare.host.parameters(), strict=True)]
    pairs += zip(guarded.host.parameters(), bare.host.parameters(), strict=True)
    pairs += zip(grown.host.parameters(), by_hand.host_parameters, strict=True)
    of_seed = [weight for _, weight in sorted(by_hand.seed.named_parameters())]
    pairs += zip(grown._editor.parameters_of("seed-1"), of_seed, strict=True)
    if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
        raise SystemExit("the loops did not train the same networks: there is nothing to compare")


def _rows(
    what: str,
    wall: dict[str, Spread],
    cpu: dict[str, Spread],
    ours: str,
    theirs: str,
    ratio: float | None,
    more_s: float,
) -> list[Row]:
    rows = []
    for kind, seconds in (("wall", wall), ("CPU", cpu)):
        value, limit = seconds[ours].lower_quartile, seconds[theirs].lower_quartile
        name = f"step, {what}: {ours} over {theirs}, {kind}, lower quartile (s)"
        if ratio is None or kind == "CPU":
            rows.append(Row.told(name, value, limit))
        else:
            target = f"<= {ratio}" + (f", or {more_s * 1e6:.0f} us more" if more_s else "")
            rows.append(Row.judged(name, value, limit, target, value <= max(ratio * limit, limit + more_s)))
    return rows


if __name__ == "__main__":
    main("step_overhead", __doc__, measure)
