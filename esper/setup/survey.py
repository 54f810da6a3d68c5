"""Measures a task before its run: sizes, slots, candidates, cost. It trains only networks that are discarded
afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from esper.config.joined import RunConfig
from esper.errors import ConfigError, TaskError, in_a_line
from esper.ground.nested import tensors
from esper.ground.temporary_rng import temporary_rng
from esper.ground.tensors import state_crc32c
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, Blueprint, BlueprintRegistry
from esper.kasmina.blueprints.flops import flop_counter
from esper.kasmina.host.attached import check_names
from esper.kasmina.host.dry_run import dry_run
from esper.kasmina.host.host_editor import SeedEditor
from esper.kasmina.host.rebuilt import structure_digest
from esper.kasmina.incubation.choices import chosen
from esper.kasmina.incubation.rungs import first_fence_of, looks_of, number_of_tests, rounds_of, tournaments_of
from esper.kasmina.judging.statistics import z_limit
from esper.leyline.decisions import Pair
from esper.leyline.slots import SlotSpec
from esper.setup.broadcasting import broadcasts_refused
from esper.setup.draws import rehearse_draws
from esper.setup.fences import fences
from esper.setup.habits import check_fields
from esper.setup.mixing import NOT_FOUND_OUT, Mixing, find_mixing
from esper.setup.own_children import check_children
from esper.setup.practice import practise
from esper.setup.rehearsal import Remembered, check_same_build, rehearse, tensors_of
from esper.setup.trial import try_backward, try_growth
from esper.tamiyo.eligibility import GrowthWindow
from esper.task import Task
from esper.tolaria.compiling import check_backend
from esper.tolaria.data import SliceRule, TaskData, split_pair, to_device
from esper.tolaria.host_building import build_host, call_model
from esper.tolaria.optim import build_optimizer, build_scheduler, rates_of, stand_ins
from esper.tolaria.snapshot_codec import check_task
from esper.tolaria.trainer import Trainer, TrainerSettings, never
from esper.tolaria.unkept import Changing, Surroundings, changed_between, joined
from esper.user_code.attributes import Held, held_by
from esper.user_code.process_state import refuse_changes, told_with_settings
from esper.user_code.shared_state import kinds_of
from esper.user_code.their_code import refused_as_theirs


@dataclass(frozen=True)
class Survey:
    """A task and a config, with everything that the survey measured."""

    task: Task
    config: RunConfig
    data: TaskData
    specs: tuple[SlotSpec, ...]
    left_out: Mapping[str, str]
    """Modules that match a pattern of `task.slots` but cannot be slots. The key is the path, the value the reason."""
    options: tuple[Pair, ...]
    blueprints: BlueprintRegistry
    fence_steps: tuple[int, ...]
    host_parameters: int
    host_bytes: int
    host_flops: int
    """Modelled FLOPs of one optimizer step of the host."""
    host_crc32c: int
    """Checksum of the host's tensors before the first step."""
    host_modules_sha256: str
    """Digest of the names, classes and settings of the host's modules; see
    `esper.kasmina.host.rebuilt.structure_digest`.
    """
    samples_crc32c: int
    """Checksum over the first batch of every shard."""
    trained_by: str
    """The class of the optimizer, the names of its hyperparameters, and the class of the scheduler."""
    peak_share: float
    """Peak learning rate of a seed, relative to the initial rate of the task's optimizer."""
    warmup_steps: int = 0
    """Step at which the warm-up of the learning rate ends, in a run of this length."""
    varying: tuple[str, ...] = ()
    """Slots whose output had different lengths, heights or widths in different batches of the trial."""
    loss_depends_on_batch: bool | None = None
    """Whether the loss of a sample depends on the other samples of its batch. None: inconclusive."""
    loss_dependence_unknown: str | None = None
    """The reason if `loss_depends_on_batch` is inconclusive."""
    mixing: Mixing = NOT_FOUND_OUT
    """Whether the network mixes the samples of a batch in evaluation mode, and the module that mixes them."""
    first_loss: float | None = None
    """Loss of the first training step. None before the rehearsal, or if training diverged."""
    changing: Changing = field(default_factory=dict)
    """Attributes that the survey's steps changed and that the survey accepted. The checks at the fences skip these
    attributes."""
    rehearsed_crc32c: int | None = None
    """Checksum of the weights after the rehearsal's last step. None before the rehearsal, or if training diverged."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.fence_steps[-1]

    @property
    def fences_to_fossil(self) -> int:
        """Smallest number of fences from the germination of a seed of the heuristic to its fossilisation."""
        ramp = self.config.growth.entry_ramp_steps
        return self.growth_window(ramp).fences_to_fossil(ramp)

    @property
    def last_germination(self) -> int:
        """Last fence at which a seed of the heuristic can germinate and still be fossilised in this run. The number is
        below 0 if the run is too short.
        """
        return len(self.fence_steps) - 1 - self.fences_to_fossil

    def growth_window(self, shortest_ramp: int) -> GrowthWindow:
        """Return the fences at which a seed may germinate, and the largest allowed seed.

        Args:
            shortest_ramp: Length of the shortest ramp that the policy may choose, in optimizer steps.
        """
        growth = self.config.growth
        return GrowthWindow(
            first_fence=self.first_fence,
            round_steps=self.fence_steps[1],
            fences_beside_ramp=self.due_rounds + 1 + growth.probation_rounds,
            fences_of_fork=self.due_rounds if growth.entry == "adopt" else 0,
            shortest_ramp=shortest_ramp,
            stack=growth.stack,
            seed_parameters=int(growth.memory_within(self.host_parameters) * self.host_parameters),
            seed_flops=int(growth.cost_within(self.host_parameters) * self.host_flops),
        )

    @property
    def resolved(self) -> RunConfig:
        """The config of a run of this length. With `growth.after_warmup`, `growth.first_step` is not before the end of
        the warm-up. `config` has the value as it was given, because the warm-up may depend on the length of the run.
        """
        growth = self.config.growth
        if not growth.after_warmup:
            return self.config
        first = max(growth.first_step, self.warmup_steps)
        return self.config.model_copy(update={"growth": growth.model_copy(update={"first_step": first})})

    @property
    def due_rounds(self) -> int:
        """Rounds between the snapshot of a tournament and its verdict."""
        return rounds_of(self.config.growth, self.fence_steps)

    @property
    def first_fence(self) -> int:
        """First fence at which a seed may germinate. It may be after the last fence."""
        return first_fence_of(self.resolved.growth, self.fence_steps)

    @property
    def can_grow(self) -> bool:
        """Whether growth is on, and a seed of the heuristic can germinate at some fence."""
        growth = self.config.growth
        return growth.enabled and self.first_fence <= self.last_germination

    @property
    def parameter_budget(self) -> int:
        """Largest number of parameters that all seeds together may have."""
        return self.config.growth.parameters_within(self.host_parameters)

    def editor(self, host: nn.Module) -> SeedEditor:
        """Return Kasmina's editor for a host of this task."""
        run = self.config.run
        backend = run.compile_backend if run.compile else None
        return SeedEditor(host, {spec.path: spec for spec in self.specs}, self.blueprints, backend)

    def trainer(
        self, run_id: str, generation: int, role: str, halted: Callable[[], bool], *, eager: bool = False
    ) -> Trainer:
        """Return a trainer with a fresh host at step 0. It calls `halted` at every step boundary.

        Args:
            eager: True: the host is not compiled, even if the config requires it.
        """
        config = self.config
        settings = TrainerSettings(
            role=role,
            run_id=run_id,
            generation=generation,
            run_seed=config.run.seed,
            total_steps=self.total_steps,
            device=config.run.device,
            compile_backend=config.run.compile_backend if config.run.compile and not eager else None,
            clip_norm=config.run.clip_norm,
            peak_share=self.peak_share,
            audit_every=config.growth.isolation_audit_steps,
            trace_every=config.telemetry.step_every,
        )
        return Trainer(self.task, settings, self.data, self.editor, halted)

    def g2_limit(self, *, look: bool = False) -> float:
        """Limit that the z of a seed must exceed at G2. z is measured on one slice of the gate shard.

        Args:
            look: True: at a later look. False: at the end of a tournament.
        """
        tests = self.g2_tests_of_looks if look else self.g2_tests
        return z_limit(self.config.growth.false_pass, tests, self.judged_units)

    @property
    def g2_tests(self) -> float:
        """Number of tests among which G2 divides the chance of a false pass, at the end of a tournament. It is not
        always whole, because a later look counts as a part of a tournament.
        """
        return number_of_tests(self.resolved.growth, self.fence_steps, look=False)

    @property
    def tournaments(self) -> int:
        """Largest number of tournaments of the run, without those of replicas."""
        return tournaments_of(self.resolved.growth, self.fence_steps)

    @property
    def looks(self) -> int:
        """Largest number of times that the refused candidates of one tournament are judged again."""
        return looks_of(self.resolved.growth, self.fence_steps)

    @property
    def g2_tests_of_looks(self) -> float:
        """As `g2_tests`, at a later look at refused candidates."""
        return number_of_tests(self.resolved.growth, self.fence_steps, look=True)

    @property
    def judged_units(self) -> int:
        """Number of samples in one slice of the gate shard, or of groups if samples are correlated. The number is the
        same at all fences.
        """
        part = self.data.slice("gate", 0, (self.config.growth.rung_samples or (None,))[-1])
        return len(part.indices) if part.groups is None else len(set(part.groups))


def open_data(task: Task, config: RunConfig, split: int = 0) -> TaskData:
    """Return the task's data, divided into shards by the config. The result is the same in every process.

    Args:
        split: As in `TaskData`.

    Raises:
        ConfigError, TaskError: the data does not suffice for the config.
    """
    growth, run = config.growth, config.run
    if growth.enabled and growth.judge_samples < growth.min_samples:
        mend = f"draw at least growth.min_samples = {growth.min_samples}"
        raise ConfigError("growth.judge_samples", growth.judge_samples, mend)
    if growth.enabled and growth.rung_samples is not None and growth.rung_samples[-1] < growth.min_samples:
        mend = f"the last rung must draw at least growth.min_samples = {growth.min_samples}"
        raise ConfigError("growth.rung_samples", list(growth.rung_samples), mend)
    minimum = growth.min_samples if growth.enabled else 0
    rule = SliceRule(units=growth.judge_samples, per_group=growth.group_samples, minimum=minimum)
    return TaskData(task, run.seed, run.batch_size or task.batch_size, rule, split)


@told_with_settings()
@broadcasts_refused()
@refused_as_theirs()
def survey_of(task: Task, config: RunConfig, blueprints: BlueprintRegistry = BLUEPRINTS) -> Survey:
    """Check and measure a task with a config. The random streams of the caller are unchanged.

    Raises:
        ConfigError, TaskError: the task or the config is wrong; nothing was written.
    """
    with temporary_rng(0):
        return _survey_of(task, config, blueprints)


def _survey_of(task: Task, config: RunConfig, blueprints: BlueprintRegistry) -> Survey:
    """Survey the task. The order matters: each step is compared with the state of the user's code before that step."""
    check_fields(task)
    _check_device(config.run.device)
    if config.run.compile:
        check_backend(config.run.compile_backend)
    data = open_data(task, config)
    fence_steps = fences(task, config, data)
    host = build_host(task, config.run.seed, config.run.device)
    refuse_changes("task.model", "the model factory")
    around = Surroundings(task, data, kinds_of(host))
    begun = around.held({})
    rehearse_draws(task, data)
    refuse_changes("task.train", "drawing a sample")
    drawn = around.data({})
    as_built = held_by(tensors_of(host))
    measured, optional = _measured(task, config, blueprints, data, fence_steps, host)
    found = _tried(_rehearsed(measured, host, as_built), optional)
    around.check_data(drawn, changed_between(begun, drawn))
    shared = changed_between(begun, {**around.held({}), **drawn})
    return replace(found, changing=joined(found.changing, shared))


def _measured(
    task: Task,
    config: RunConfig,
    blueprints: BlueprintRegistry,
    data: TaskData,
    fence_steps: tuple[int, ...],
    host: nn.Module,
) -> tuple[Survey, frozenset[str]]:
    """Return the survey of one batch, and the slots that are left out if they fail a later check."""
    parameters = list(host.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    host_crc32c, host_modules_sha256 = state_crc32c(tensors_of(host)), structure_digest(host)
    check_task(task, fence_steps[-1], trained)
    refuse_changes("task.optimizer", "a step of it or of its scheduler")
    device = torch.device(config.run.device)
    inputs, targets = (to_device(part, device) for part in split_pair(data.batch(0)))
    found = dry_run(host, task.slots, inputs, lambda model, batch: call_model(task, model, batch), data.batch_size)
    _check_names(host, found.specs)
    made = chosen(found.specs, config.growth.blueprints, blueprints)
    rates = rates_of(task, fence_steps[-1], trained)
    survey = Survey(
        task=task,
        config=config,
        data=data,
        specs=found.specs,
        left_out=found.left_out,
        options=tuple(pair for spec in found.specs for pair in _pairs(spec, made[spec.path], data, config)),
        blueprints=blueprints,
        fence_steps=fence_steps,
        host_parameters=sum(p.numel() for p in parameters),
        host_bytes=sum(p.numel() * p.element_size() for p in parameters),
        host_flops=_step_flops(task, host, inputs, targets),
        host_crc32c=host_crc32c,
        host_modules_sha256=host_modules_sha256,
        samples_crc32c=_samples_crc32c(data),
        trained_by=_trained_by(task, trained, fence_steps[-1]),
        peak_share=rates.peak_share,
        warmup_steps=rates.warmup_steps,
    )
    return survey, found.optional


def _step_flops(task: Task, host: nn.Module, inputs: Any, targets: Any) -> int:  # Any: a batch of the task
    """Return the modelled FLOPs of one optimizer step.

    Raises:
        TaskError: the model has no matrix product or convolution, or the forward pass, the loss or the backward pass
            failed.
    """
    with flop_counter() as counter:
        try_backward(task, host, inputs, targets)
    refuse_changes("task.model", "a forward pass with the loss")
    if counter.get_total_flops() == 0:
        mend = "the cost of seeds is counted in matrix products and convolutions; give a model that has one"
        raise TaskError("task.model", type(host).__name__, mend)
    return int(counter.get_total_flops())


def _rehearsed(survey: Survey, host: nn.Module, as_built: Held) -> Survey:
    """Return the survey, to which the results of some training steps and of one evaluation of each shard are added.

    Args:
        as_built: State of `host` before its first step. The state of a second host of the task must be equal to it.
    """
    task, config = survey.task, survey.config
    draft = replace(survey, data=cast(TaskData, Remembered(survey.data)))
    fresh = partial(draft.trainer, "", 0, "tolaria", never)
    training = fresh()
    check_same_build(host, as_built, training.host)
    same_bits = config.run.device == "cpu"
    first_loss, rehearsed, changing = rehearse(task, training, fresh, survey.total_steps, same_bits=same_bits)
    practised = practise(task, training.host, survey.total_steps)
    judging = fresh()  # the rehearsal may have diverged
    if config.growth.enabled:
        judging.sample_losses("gate", 0)
    judging.try_shards()
    depends, unknown = judging.loss_depends_on_batch()
    draft = replace(draft, loss_depends_on_batch=depends)
    if config.growth.enabled:
        check_children(judging, draft.data.batch(0), draft.data.batch_size)
    mixing = find_mixing(draft, judging if first_loss is None else training, draft.data.batch(0))
    refuse_changes("task", "training or measuring")
    return replace(
        survey,
        first_loss=first_loss,
        rehearsed_crc32c=rehearsed,
        changing=joined(changing, practised),
        loss_depends_on_batch=depends,
        loss_dependence_unknown=unknown,
        mixing=mixing,
    )


def _tried(survey: Survey, optional: frozenset[str]) -> Survey:
    """Return the survey, to which the results of a trial of growth are added. If the trial of a slot fails, the slot is
    left out, unless `task.slots` names it in full.

    Raises:
        TaskError: the trial failed at a slot that `task.slots` names in full, or at the last remaining slot, or outside
            the slots.
    """
    while True:
        try:
            no_telemetry = Context()  # the trial must not count in the caller's telemetry
            return replace(survey, varying=no_telemetry.run(try_growth, survey))
        except TaskError as error:
            path = error.field.removeprefix("slot ")
            specs = tuple(spec for spec in survey.specs if spec.path != path)
            if path not in optional or len(specs) in (0, len(survey.specs)):
                raise
            options = tuple(pair for pair in survey.options if pair.slot != path)
            left_out = {**survey.left_out, path: str(error.value)}
            survey = replace(survey, specs=specs, options=options, left_out=left_out)


def _samples_crc32c(data: TaskData) -> int:
    shards = [name for name in sorted(data.shards) if len(data.shards[name])]  # judging shards may be empty
    batches = [data.batch(0), *(next(iter(data.whole(name))) for name in shards)]
    return state_crc32c({f"{number:08d}": tensor for number, tensor in enumerate(tensors(batches))})


def _trained_by(task: Task, parameters: list[nn.Parameter], total_steps: int) -> str:
    optimizer = build_optimizer(task, stand_ins(parameters))
    scheduler = build_scheduler(task, optimizer, total_steps)
    told = f"{type(optimizer).__name__}({', '.join(sorted(optimizer.defaults))})"
    return told if scheduler is None else f"{told}, {type(scheduler).__name__}"


def _check_device(name: str) -> None:
    try:
        (torch.ones(1, device=name) + 1).tolist()  # fails on a device without values ("meta")
    except (RuntimeError, AssertionError, ImportError) as error:  # the class depends on torch's build
        raise ConfigError("run.device", name, f"torch cannot use it: {in_a_line(error)}") from error


def _check_names(host: nn.Module, specs: tuple[SlotSpec, ...]) -> None:
    """Raises: TaskError: a module of the host has the name of the seeds, so the grown network could not be exported."""
    try:
        check_names(host, [spec.path for spec in specs])
    except ValueError as error:
        raise TaskError("task.model", type(host).__name__, f"{error}; rename it") from error


def _pairs(spec: SlotSpec, blueprints: Sequence[Blueprint], data: TaskData, config: RunConfig) -> list[Pair]:
    copies = config.growth.copies
    return [
        Pair(
            slot=spec.path,
            blueprint_id=made.name,
            parameters=made.parameters(spec, copies),
            flops=made.flops(spec, data.batch_size, copies),
            risk=made.risk,
            mesh=made.mesh(spec.path),
            copies=copies,
        )
        for made in blueprints
    ]
