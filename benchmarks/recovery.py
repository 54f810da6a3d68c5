"""Time from the SIGKILL of an actor to the first step after it, compared with a restart by Ray Train.

Esper's time begins when Ray records the death, some milliseconds after the kill. Ray Train's time begins just before
the kill. Both train the same host on the same batches, and both restart from a checkpoint on disk. The benchmark needs
"ray[train]".
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _bare import BareLoop
from _common import Outcome, Row, Spread, main, scratch

from actors.embedded_ray import EmbeddedRay
from esper import OnRay, run
from esper.archive.recovery_record import Recovery
from esper.config.joined import RunConfig, load_config
from esper.faults import Fault, FaultSpec
from esper.setup.survey import survey_of
from esper.task import Task
from esper.testing import tiny_config, tiny_task
from esper.user_code.process_state import process_state
from esper.user_code.task_reference import load_task

TASK = "esper.tasks.stdlib_text:task"
STRUCK_AT = 130
"""Optimizer step before which the trainer dies, in the fourth round of forty steps."""
SHARE = 0.5

ROLES = {  # actor -> the fault point at which it dies, and the number of the passage
    "kasmina": ("kasmina.receive", 2),
    "manager-0": ("kasmina.step", 300),
    "tamiyo": ("tamiyo.decide", 3),
    "emergency": ("emergency.pending", 5),
}
PHASES = ("detect", "decide", "stop", "start", "restore", "first_step")


def measure(repetitions: int) -> Outcome:
    """Kill esper's trainer, Ray Train's worker, and then each other actor of a tiny run, in every repetition."""
    ours: list[Recovery] = []
    theirs_s: list[float] = []
    others: dict[str, list[Recovery]] = {name: [] for name in ROLES}
    task, _ = load_task(TASK)
    with scratch() as folder, process_state(1), EmbeddedRay(slots=3) as embedded:
        for repetition in range(repetitions):
            place = folder / str(repetition)
            keys = {"run.seed": repetition, "run.dir": str(place / "ours"), "growth.enabled": False}
            spec = FaultSpec(point="tolaria.step", fault=Fault.KILL, step=STRUCK_AT)
            ours.append(_recovered(task, load_config(None, keys), spec, embedded))
            theirs_s.append(_ray_train(repetition, place / "theirs"))
            for name, (point, passage) in ROLES.items():
                spec = FaultSpec(point=point, fault=Fault.KILL, passage=passage, role=name)
                others[name].append(_recovered(tiny_task(), tiny_config(run__dir=str(place / name)), spec, embedded))
    mine, theirs = Spread(tuple(one.total_s for one in ours)), Spread(tuple(theirs_s))
    target = f"< {SHARE} of Ray Train"
    rows = [
        Row.judged(
            "trainer killed in a round, to the first good step, median (s)",
            mine.median,
            theirs.median,
            target,
            mine.median < SHARE * theirs.median,
        ),
        *(Row.told(f"trainer: {phase} (s)", _median(ours, phase)) for phase in PHASES),
        *(Row.told(f"{name}, {_until(found[0])} (s)", _total(found)) for name, found in others.items()),
    ]
    return Outcome(rows=rows, spreads={"trainer (s)": mine, "Ray Train (s)": theirs})


def _recovered(task: Task, config: RunConfig, spec: FaultSpec, embedded: EmbeddedRay) -> Recovery:
    result = run(task, config.model_copy(update={"faults": (spec,)}), on=OnRay(embedded))
    (recovery,) = result.recoveries
    return recovery


def _median(found: list[Recovery], phase: str) -> float:
    return Spread(tuple(getattr(one, f"{phase}_s") for one in found)).median


def _until(recovery: Recovery) -> str:
    return "until its successor is up, training goes on" if recovery.alone else "to the first good step"


def _total(found: list[Recovery]) -> float:
    return Spread(tuple(one.total_s for one in found)).median


def _ray_train(seed: int, folder: Path) -> float:
    """Return the seconds from the SIGKILL of Ray Train's worker to the first step of its successor."""
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchTrainer

    folder.mkdir(parents=True)
    trainer = TorchTrainer(
        _their_loop,
        train_loop_config={"seed": seed, "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=TrainRunConfig(storage_path=str(folder), failure_config=FailureConfig(max_failures=1)),
    )
    trainer.fit()
    return float((folder / "first step").read_text()) - float((folder / "killed").read_text())


def _their_loop(told: dict[str, Any]) -> None:  # Any: the config of Ray Train
    """Train round by round, with a checkpoint after each. The first worker kills itself in a round."""
    from ray import train

    torch.set_num_threads(1)
    folder = Path(told["folder"])
    survey = survey_of(load_task(TASK)[0], load_config(None, {"run.seed": told["seed"], "growth.enabled": False}))
    bare, steps = BareLoop(survey), survey.fence_steps
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as kept:
            bare.load(torch.load(Path(kept) / "state.pt", weights_only=True))
        bare.train(1)
        (folder / "first step").write_text(str(time.time()))
        return
    for number in range(1, len(steps)):
        if steps[number] > STRUCK_AT:
            bare.train(STRUCK_AT - steps[number - 1])
            (folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        bare.train(steps[number] - steps[number - 1])
        with tempfile.TemporaryDirectory() as place:
            torch.save(bare.state(), Path(place) / "state.pt")
            train.report({}, checkpoint=train.Checkpoint.from_directory(place))


if __name__ == "__main__":
    main("recovery", __doc__.partition("\n")[0], measure)
