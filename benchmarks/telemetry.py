"""Cost of telemetry for the training, in one process.

Three trainers train the same network on the same batches in alternating rounds: with `OTEL_SDK_DISABLED`, with default
telemetry, and with an OTLP collector that is not there. Each round has as many spans as a round of a whole run, and one
severe event. All must end with the same bits. The share of a core at 200 steps/s is measured in a loop that has only
the telemetry of a step.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

from _common import Outcome, Row, Spread, main, scratch

import esper
from esper.config.joined import load_config
from esper.emergency.word import EmergencyWord
from esper.ground.tensors import state_digest
from esper.setup.survey import Survey, survey_of
from esper.telemetry import Severity, Telemetry, severe, span, use
from esper.telemetry.metrics import observe
from esper.testing import tiny_config, tiny_task
from esper.tolaria.trainer import Trainer
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

TASK = "esper.tasks.stdlib_text:task"
ROUND_RATIO, CORE_SHARE, STEPS_PER_S = 1.02, 0.02, 200
LOOP_STEPS = 20_000
RUN_ID = "6f1c1c60-6b3b-4c19-9a43-0f3a7f3d8f10"
WAYS = ("disabled", "default", "dead collector")


def measure(repetitions: int) -> Outcome:
    """Measure whole trainings. Each repetition begins with another way."""
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu: dict[str, list[float]] = {name: [] for name in WAYS}
    shares: list[float] = []
    lost = 0
    with process_state(1), scratch() as folder, EmergencyWord.create(folder / "word") as word:
        spans = _spans_of_a_round(folder / "run")
        survey = survey_of(load_task(TASK)[0], load_config())
        for repetition in range(repetitions):
            with ExitStack() as stack:
                kept = {name: stack.enter_context(_telemetry(name, folder / f"{name}-{repetition}")) for name in WAYS}
                trainers = {name: survey.trainer(RUN_ID, 1, "tolaria", word.halted) for name in WAYS}
                _train(survey, trainers, kept, spans, repetition, wall, cpu)
                shares.append(_core_share(kept["default"], kept["disabled"]))
            lost += kept["dead collector"].counters.total("esper.spans.lost")
    at = {kind: {name: Spread(tuple(found[name])) for name in WAYS} for kind, found in (("wall", wall), ("CPU", cpu))}
    rows = [
        *(_row(kind, at[kind][name], at[kind]["disabled"], name) for kind in at for name in WAYS[1:]),
        Row.judged(
            f"share of a core at {STEPS_PER_S} steps/s, default telemetry",
            Spread(tuple(shares)).median,
            CORE_SHARE,
            f"<= {CORE_SHARE:.0%}",
            Spread(tuple(shares)).median <= CORE_SHARE,
        ),
        Row.told("spans of a round, without those of steps", spans),
        Row.told("spans that the dead collector lost, each counted", lost),
    ]
    return Outcome(rows, {f"round, {name}, {kind} s": at[kind][name] for kind in at for name in WAYS})


def _row(kind: str, found: Spread, without: Spread, name: str) -> Row:
    ratio = found.lower_quartile / without.lower_quartile
    what = f"{kind} seconds of a round, {name} over OTEL_SDK_DISABLED"
    return Row.judged(what, ratio, ROUND_RATIO, f"<= {ROUND_RATIO}", ratio <= ROUND_RATIO)


def _train(
    survey: Survey,
    trainers: dict[str, Trainer],
    kept: dict[str, Telemetry],
    spans: int,
    repetition: int,
    wall: dict[str, list[float]],
    cpu: dict[str, list[float]],
) -> None:
    for fence in range(1, len(survey.fence_steps)):
        for name in islice(cycle(WAYS), repetition % 3, repetition % 3 + 3):
            began, used = time.perf_counter(), time.process_time()
            with use(kept[name]), span("esper round", role="conductor", fence=fence):
                trainers[name].run_round(fence, survey.fence_steps[fence])
                for number in range(spans - 1):
                    with span("tamiyo decide", role="tamiyo", fence=fence, number=number):
                        pass
                severe("gate_failure", Severity.WARNING, gate="G2", fence=fence)
            if fence > 1:  # the first round is warm-up
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - used)
    digests = {state_digest(trainer.host.state_dict()) for trainer in trainers.values()}
    if len(digests) > 1:
        raise SystemExit("telemetry changed the bits: there is nothing to compare")


def _spans_of_a_round(path: Path) -> int:
    """Count the spans of a round of a whole run, without those of steps."""
    esper.run(tiny_task(), tiny_config(run__dir=str(path)))
    names = []
    for file in (path / "telemetry").glob("spans-*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
            names += [one["name"]] if one["endTimeUnixNano"] != "0" else []
    return round(sum(name != "esper step" for name in names) / names.count("esper round"))


def _core_share(default: Telemetry, disabled: Telemetry) -> float:
    """Return the CPU seconds of `STEPS_PER_S` steps that do nothing but their default telemetry.

    The loop without telemetry comes first, as a warm-up. Its seconds are not subtracted.
    """
    seconds = {}
    for telemetry in (disabled, default):
        with use(telemetry):
            used = time.process_time()
            for step in range(LOOP_STEPS):
                if step % 100 == 0:
                    with span("esper step", role="tolaria", step=step):
                        pass
                observe("esper.step.duration", 0.005, role="tolaria")
            seconds[telemetry.enabled] = time.process_time() - used
    return seconds[True] / LOOP_STEPS * STEPS_PER_S


def _telemetry(name: str, folder: Path) -> Telemetry:
    with socket.create_server(("127.0.0.1", 0)) as free:
        absent = f"http://127.0.0.1:{free.getsockname()[1]}"  # nobody listens there once the block ends
    variables = {
        "disabled": {"OTEL_SDK_DISABLED": "true"},
        "default": {},
        "dead collector": {"OTEL_EXPORTER_OTLP_ENDPOINT": absent, "OTEL_BSP_SCHEDULE_DELAY": "100"},
    }
    os.environ.update(variables[name])
    try:
        return Telemetry.start(folder, "tolaria", RUN_ID)
    finally:  # the variables are for this telemetry only
        for variable in variables[name]:
            del os.environ[variable]


if __name__ == "__main__":
    main("telemetry", __doc__ or "", measure)
