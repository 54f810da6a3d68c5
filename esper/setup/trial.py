"""Tries a task before its run: a backward pass, and steps with a seed in every slot. The task and the survey are not
changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from esper.errors import DivergenceUnrecoverable, IsolationViolation, TaskError
from esper.ground.slot_output import part_of
from esper.kasmina.blueprints.padded import seed_output
from esper.kasmina.blueprints.precision import parameter_dtype
from esper.kasmina.host.code_path import COMPILED
from esper.kasmina.host.dry_run import NESTED, kept_as_it_is
from esper.kasmina.incubation.planning import plan_seed
from esper.leyline.commands import BlendMode, BlendSpec, Candidate
from esper.leyline.decisions import Pair
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import SlotSpec
from esper.setup.seed_state import check_seed_states
from esper.setup.untrained import check_parts, refuse_reentrant
from esper.task import Task
from esper.tolaria.host_building import call_model
from esper.tolaria.host_modules import check_gradients
from esper.tolaria.loss import batch_loss
from esper.tolaria.optim import build_optimizer
from esper.tolaria.slot_calls import MOST_SKIPPED, not_called
from esper.tolaria.trainer import Trainer, never
from esper.user_code.their_code import refused_as_theirs, their_code

if TYPE_CHECKING:
    from esper.setup.survey import Survey

STEPS = 3
"""Number of training steps. There is more than one step, because lengths may differ between batches."""


def try_backward(task: Task, host: nn.Module, inputs: Any, targets: Any) -> None:  # Any: a batch of the task
    """Run a forward and a backward pass of the host without seeds. Afterwards the tensors of the host are restored, but
    not the gradients.

    Raises:
        TaskError: the loss is not finite or has no gradient, or training cannot use the gradients.
    """
    with kept_as_it_is(host, training=True):
        loss = batch_loss(task.loss, call_model(task, host, inputs), targets)
        check_parts(task, host, loss)
        if not loss.isfinite():
            raise TaskError("task.loss", loss.item(), "it is not finite on the first batch of an untrained model")
        if not loss.requires_grad:
            with refuse_reentrant():
                call_model(task, host, inputs)
            raise TaskError("task.loss", loss.item(), "it has no gradient; return the tensor itself, not detached")
        with their_code("task.model", "the backward pass"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    check_gradients(host)


def try_growth(survey: Survey) -> tuple[str, ...]:
    """Train a host for a few steps with the cheapest candidate in every slot, evaluate it on each shard, and discard
    it.

    Without growth the host has no candidates.

    Returns:
        Slots whose output had different lengths, heights or widths in different batches.

    Raises:
        TaskError: the user's code raised; a slot's output has other channels or another type in a later batch; or no
            training batch called a slot.
        SeedBuildFailed: a candidate cannot be built.
        TaskError: a seed of the user has state that no checkpoint saves; see `check_seed_states`.
    """
    grows = survey.config.growth.enabled
    if grows:
        _try_optimizers(survey)
        check_seed_states(survey)
    trainer = survey.trainer("", 0, "survey", never, eager=True)
    doing = "with a seed in every slot" if grows else ""
    shapes: dict[str, list[tuple[int, ...]]] = {spec.path: [] for spec in survey.specs}
    with (
        _watching(trainer.host, survey.specs, shapes),
        refused_as_theirs(doing),
    ):
        if grows:
            _graft_cheapest(survey, trainer)
        try:
            trainer.train_to(min(STEPS, survey.total_steps))
            _look_for_calls(trainer, shapes)
        except DivergenceUnrecoverable:  # accepted, because the trial checks only shapes; a run reports it
            return ()
        trainer.try_shards()
    if grows and survey.config.run.compile:
        _try_compiled(survey)
    return tuple(path for path, seen in shapes.items() if len(set(seen)) > 1)


def _try_compiled(survey: Survey) -> None:
    """Train a compiled host for some steps with the cheapest candidate in every slot.

    Raises:
        TaskError: a seed was not called, or was called by a part of the forward that torch could not compile.
        ConfigError: torch cannot compile the model.
    """
    trainer = survey.trainer("", 0, "survey", never)
    with refused_as_theirs("compiled, with a seed in every slot"):
        _graft_cheapest(survey, trainer)
        trainer.train_to(min(STEPS, survey.total_steps))
    for seen in trainer.observe(0, {}).seeds:
        if seen.path != COMPILED:
            mend = "torch cannot compile the forward around this slot; name another module, or leave run.compile out"
            raise TaskError(f"slot {seen.slot}", f"called {seen.path}, not compiled", mend)


def _graft_cheapest(survey: Survey, trainer: Trainer) -> None:
    """Attach the cheapest candidate of each slot. Leave out candidates that violate isolation, because gate G1 refuses
    them.
    """
    for plan, blob in cheapest_plans(survey):
        with suppress(IsolationViolation):
            trainer.graft(plan, {plan.weights_digest: blob})


def _look_for_calls(trainer: Trainer, shapes: dict[str, list[tuple[int, ...]]]) -> None:
    """Run forward passes of further training batches until every slot was called once.

    Raises:
        TaskError: a slot was never called.
    """
    for step in range(trainer.step, trainer.step + MOST_SKIPPED):
        if all(shapes.values()):
            return
        trainer.glance(step)
    for path in (path for path, seen in shapes.items() if not seen):
        raise not_called(path, 0, trainer.step + MOST_SKIPPED)


def cheapest_plans(survey: Survey) -> Iterator[tuple[GraftPlan, bytes]]:
    """Yield one plan for each slot, with its weights. The candidate is the one of the slot with the fewest FLOPs. Its
    alpha is at the target from the first step.

    Candidates whose output has another shape or dtype than the slot are left out, because gate G0 refuses them.
    """
    for spec in survey.specs:
        there = [pair for pair in survey.options if pair.slot == spec.path and _fits(survey, pair, spec)]
        if not there:
            continue
        pair = min(there, key=lambda pair: (pair.flops, pair.parameters, pair.blueprint_id))
        yield plan_seed(
            Candidate(
                slot=spec.path, blueprint_id=pair.blueprint_id, seed_id=f"trial of {spec.path}", copies=pair.copies
            ),
            spec,
            survey.blueprints.get(pair.blueprint_id),
            run_id="",
            generation=0,
            command_id="trial",
            run_seed=survey.config.run.seed,
            fence=0,
            step=0,
            ordinal=0,
            blend=BlendSpec(mode=BlendMode.RESIDUAL, ramp_steps=1),
            warmup_steps=1,
        )


def _fits(survey: Survey, pair: Pair, spec: SlotSpec) -> bool:
    module = survey.blueprints.get(pair.blueprint_id).build(spec, seed_key=0, copies=pair.copies)
    h = torch.zeros(2, *spec.shape, dtype=parameter_dtype(spec), device=spec.device)
    with torch.no_grad():
        output = seed_output(module, h, None)
    return isinstance(output, Tensor) and (output.shape, output.dtype) == (h.shape, h.dtype)


@contextmanager
def _watching(host: nn.Module, specs: tuple[SlotSpec, ...], shapes: dict[str, list[tuple[int, ...]]]) -> Iterator[None]:
    """Record the output shape of each slot at every call, in `shapes`. Refuse an output that the seeds of the slot
    cannot use as input.
    """

    def look(spec: SlotSpec) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, whole: object) -> None:
            output = part_of(whole)
            if output.is_nested:
                raise TaskError(f"slot {spec.path}", "a nested tensor in a later batch", NESTED)
            shape = tuple(output.shape[1:])
            if not spec.fits(shape) or str(output.dtype) != spec.dtype:
                value = f"output of {shape} {output.dtype} in a later batch, {spec.shape} {spec.dtype} in the first"
                mend = "name a module with the same channels and type in every batch; lengths may differ"
                raise TaskError(f"slot {spec.path}", value, mend)
            shapes[spec.path].append(shape)

        return hook

    handles = [host.get_submodule(spec.path).register_forward_hook(look(spec)) for spec in specs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _try_optimizers(survey: Survey) -> None:
    """Step the task's optimizer over the parameters of each kind of seed.

    Raises:
        TaskError: the optimizer refuses the parameters. Some optimizers accept only matrices, or only parameters with
            known names.
    """
    specs = {spec.path: spec for spec in survey.specs}
    kinds: dict[tuple[str, str, tuple[int, ...]], Pair] = {}
    for pair in survey.options:
        kinds.setdefault((pair.blueprint_id, specs[pair.slot].kind, specs[pair.slot].shape), pair)
    for pair in kinds.values():
        module = survey.blueprints.get(pair.blueprint_id).build(specs[pair.slot], seed_key=0)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            continue
        with refused_as_theirs(f"over the parameters of the seed {pair.blueprint_id!r} in the slot {pair.slot!r}"):
            optimizer = build_optimizer(survey.task, parameters)
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            with their_code("task.optimizer", "optimizer.step"):
                optimizer.step()
