"""The arms of the benchmark `growth`: the grown network, and networks that somebody could train instead of it.

All arms use the trainer, the data, the order of the batches and the number of optimizer steps of a run of esper. So
they differ only in the network and its learning rate.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import esper
from esper import RunConfig, Task
from esper.kasmina.blueprints.catalogue import BLUEPRINTS
from esper.kasmina.host.attached import Seed, SlotHook
from esper.kasmina.host.formulas import residual
from esper.kasmina.incubation.planning import plan_seed
from esper.leyline.commands import BlendMode, BlendSpec, Candidate
from esper.leyline.decisions import Pair
from esper.leyline.slots import SlotSpec
from esper.setup.survey import Survey, survey_of
from esper.tamiyo.eligibility import over_budgets
from esper.tamiyo.fields import spread
from esper.tolaria.trainer import Trainer, never
from esper.user_code.process_state import process_state

FOSSIL = {"FOSSILIZED", "PROBATIONARY", "SHADOWING", "BLENDING"}
"""Stages of the seeds that are in the network at the end."""
RATES = (0.5, 1.0, 2.0)
"""Factors of the task's learning rate among which each arm chooses on the validation shard."""
SLOWEST, FASTEST = 0.125, 16.0
"""Smallest and largest factor that is tried if the best of `RATES` is its first or last."""
THREADS = 1
"""Number of torch threads of all arms, as in a run by default."""
MOST_SAMPLES = 400
"""Largest number of random draws in the search for a pair that is within the budgets."""


@dataclass(frozen=True)
class Inserted:
    """A seed of the final network."""

    slot: str
    blueprint: str
    copies: int


@dataclass(frozen=True)
class Arm:
    """The figures of one training. Losses are means over the whole shard."""

    test: float
    valid: float
    parameters: int
    steps: int
    gflops: float
    """All modelled FLOPs that the arm needs, in units of 10^9: of the grown arm, also those of all forks."""
    rate: float
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Grown:
    """A run of esper, with its twin."""

    arm: Arm
    twin: Arm
    """The network without seeds. If the run has no twin, this is a run without growth."""
    trainer_gflops: float
    ends_with: str
    live_test: float
    """Test loss of the live host, which is not the network of the run if the run ended with its twin."""
    seeds: tuple[Inserted, ...]
    tournaments: int
    why_none: str | None


def with_rate(task: Task, rate: float) -> Task:
    """Return the task with all its learning rates multiplied by `rate`."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = task.optimizer(parameters)
        for group in made.param_groups:
            group["lr"] *= rate
        return made

    return task if rate == 1.0 else replace(task, optimizer=optimizer)


def config_of(settings: dict[str, Any], seed: int, **more: Any) -> RunConfig:
    """Return the config of an arm: the settings of all arms, a run seed, and `more` by keys with `__` for the dot."""
    return RunConfig(**{**settings, "run.seed": seed, **{key.replace("__", "."): value for key, value in more.items()}})


def grow(task: Task, settings: dict[str, Any], seed: int, rate: float = 1.0) -> Grown:
    """Run esper once."""
    task = with_rate(task, rate)
    with tempfile.TemporaryDirectory(prefix="esper-growth-") as folder:
        found = esper.run(task, config_of(settings, seed, run__dir=str(Path(folder) / "run"), telemetry__enabled=False))
    live_test = found.test_loss if found.live_test_loss is None else found.live_test_loss
    inside = [one for one in found.seeds if one.stage in FOSSIL and found.ends_with != "twin"]
    kept = tuple(Inserted(one.slot, one.blueprint, one.copies) for one in inside)
    total = found.trainer_gflops + found.incubator_gflops + found.twin_gflops
    arm = Arm(found.test_loss, found.valid_loss, found.params_end, found.steps, total, rate)
    twin = train(task, settings, seed)
    if found.twin_test_loss is not None and abs(twin.test - found.twin_test_loss) > 1e-6:
        raise SystemExit(f"the twin has test loss {found.twin_test_loss}, the run without growth {twin.test}")
    return Grown(
        arm,
        twin,
        found.trainer_gflops,
        found.ends_with,
        live_test,
        kept,
        found.growth.tournaments,
        found.why_none_stayed,
    )


@process_state(THREADS)
def train(task: Task, settings: dict[str, Any], seed: int, rate: float = 1.0, epochs: int | None = None) -> Arm:
    """Train the task's network without growth."""
    more = {} if epochs is None else {"run__epochs": epochs}
    survey = survey_of(with_rate(task, rate), config_of(settings, seed, growth__enabled=False, **more))
    return _measured(survey, _trainer(survey), rate)


class WithSeeds(nn.Module):
    """A host with new seeds at full strength. Its optimizer trains both from the first step."""

    def __init__(self, host: nn.Module, seeds: Sequence[tuple[str, Seed]]) -> None:
        super().__init__()
        self.host, self.seeds = host, nn.ModuleList(seed for _, seed in seeds)
        for slot in dict.fromkeys(slot for slot, _ in seeds):
            module = host.get_submodule(slot)
            SlotHook(module, [seed for there, seed in seeds if there == slot]).register(module)

    def forward(self, *inputs: Any) -> Any:  # Any: whatever the host takes and returns
        return self.host(*inputs)


def of_shape(task: Task, specs: Sequence[SlotSpec], seeds: Sequence[Inserted]) -> Task:
    """Return the task with a host that has seeds from the beginning."""
    by_path = {spec.path: spec for spec in specs}

    def model() -> nn.Module:
        host, parts = task.model(), []
        for one in seeds:
            key = int(torch.randint(2**62, ()))  # drawn from the generator that the run seeds
            module = BLUEPRINTS.get(one.blueprint).build(by_path[one.slot], key, one.copies)
            parts.append((one.slot, Seed(module, torch.ones(()), residual)))
        return WithSeeds(host, parts)

    return replace(task, model=model, slots=[f"host.{spec.path}" for spec in specs])


@process_state(THREADS)
def random_pairs(task: Task, settings: dict[str, Any], seed: int, count: int, draw: int, rate: float = 1.0) -> Arm:
    """Insert `count` random pairs (slot, blueprint) at the first fence at which a seed may germinate, without a gate.

    Slots, blueprints and first weights are drawn from the run seed and `draw`. Each pair is within the budgets of the
    run. The ramp, the warm-up and the learning rates are those of a fork.
    """
    survey = survey_of(with_rate(task, rate), config_of(settings, seed))
    growth, fence = survey.config.growth, survey.first_fence
    trainer, step = _trainer(survey), survey.fence_steps[fence]
    trainer.train_to(step)
    source, ordinals, parameters = random.Random(f"{seed}-{draw}"), dict[str, int](), 0
    specs, chosen = {spec.path: spec for spec in survey.specs}, list[Pair]()
    for number in range(count):
        pair = _within_budgets(survey, source, survey.parameter_budget - parameters)
        parameters += pair.parameters
        ordinal = ordinals[pair.slot] = ordinals.get(pair.slot, -1) + 1
        plan, weights = plan_seed(
            Candidate(slot=pair.slot, blueprint_id=pair.blueprint_id, seed_id=f"random-{number}", copies=pair.copies),
            specs[pair.slot],
            BLUEPRINTS.get(pair.blueprint_id),
            run_id="",
            generation=0,
            command_id=f"random-{number}",
            run_seed=seed * 1000 + draw,
            fence=fence,
            step=step,
            ordinal=ordinal,
            blend=BlendSpec(mode=BlendMode.RESIDUAL, ramp_steps=growth.probe_ramp_steps),
            warmup_steps=growth.probe_warmup_steps,
        )
        trainer.graft(plan, {plan.weights_digest: weights})
        chosen.append(pair)
    found, steps = _measured(survey, trainer, rate), survey.total_steps - step
    of_seeds = sum(pair.flops for pair in chosen) * steps / 1e9
    note = ", ".join(f"{pair.blueprint_id} at {pair.slot}" for pair in chosen)
    return replace(found, gflops=found.gflops + of_seeds, note=note)


@process_state(THREADS)
def halving(task: Task, settings: dict[str, Any], seed: int, rate: float = 1.0) -> Arm:
    """Search for the best shape of one pair by successive halving with eta 3, each shape trained from scratch.

    Shapes are judged on the validation shard after a ninth, a third and all of the steps. The cost is the sum.

    Source: Li et al., arXiv:1810.05934 (ASHA); with one worker it is successive halving.
    """
    grown = survey_of(task, config_of(settings, seed))
    pairs = [pair for pair in grown.options if not _over(grown, pair, grown.parameter_budget)]
    runs = []
    for pair in spread(pairs, grown.config.growth.candidates):
        one = Inserted(pair.slot, pair.blueprint_id, pair.copies)
        shape = of_shape(with_rate(task, rate), grown.specs, [one])
        survey = survey_of(shape, config_of(settings, seed, growth__enabled=False))
        runs.append((f"{pair.blueprint_id} at {pair.slot}", survey, _trainer(survey)))
    cost = 0.0
    for part in (9, 3, 1):
        judged = []
        for name, survey, trainer in runs:
            cost += (survey.total_steps // part - trainer.step) * survey.host_flops / 1e9
            trainer.train_to(survey.total_steps // part)
            judged.append((trainer.shard_means("valid")["loss"], name, survey, trainer))
        judged.sort(key=lambda one: one[0])
        runs = [(name, survey, trainer) for _, name, survey, trainer in judged[: max(1, len(judged) // 3)]]
    name, survey, trainer = runs[0]
    return replace(_measured(survey, trainer, rate), gflops=cost, note=name)


@process_state(THREADS)
def specs_of(task: Task, settings: dict[str, Any]) -> tuple[SlotSpec, ...]:
    """Return the slots of the task's network."""
    return survey_of(task, config_of(settings, 0)).specs


def _trainer(survey: Survey) -> Trainer:
    return survey.trainer("", 0, "tolaria", never)


def _over(survey: Survey, pair: Pair, room: int) -> tuple[str, ...]:
    return over_budgets(pair, survey.growth_window(survey.config.growth.entry_ramp_steps), room)


def _within_budgets(survey: Survey, source: random.Random, room: int) -> Pair:
    for _ in range(MOST_SAMPLES):
        pair = source.choice(survey.options)
        if not _over(survey, pair, room):
            return pair
    raise SystemExit("no pair is within the budgets")


def _measured(survey: Survey, trainer: Trainer, rate: float) -> Arm:
    """Train to the end of the run, and measure."""
    trainer.train_to(survey.total_steps)
    test, valid = trainer.shard_means("test")["loss"], trainer.shard_means("valid")["loss"]
    gflops = survey.host_flops * survey.total_steps / 1e9
    return Arm(test, valid, trainer.parameter_count(), survey.total_steps, gflops, rate)
