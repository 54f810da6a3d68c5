"""Checks before a run that a checkpoint saves the whole state of seeds of the user's blueprints."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from esper.errors import SeedBuildFailed, TaskError
from esper.ground.temporary_rng import temporary_rng
from esper.kasmina.blueprints.catalogue import Blueprint, Called
from esper.kasmina.blueprints.padded import seed_output
from esper.kasmina.blueprints.precision import dtype_of, named
from esper.kasmina.host.prewarm import SAMPLES
from esper.leyline.slots import SlotSpec
from esper.tolaria.snapshot import load_tensors
from esper.user_code.attributes import Held, different, held_by, path_in_words
from esper.user_code.extra_state import extra_states, load_extra_states
from esper.user_code.mends import SEED, mend_of
from esper.user_code.their_code import their_code

if TYPE_CHECKING:
    from esper.setup.survey import Survey

CALLS = 2
"""Number of forward passes before the state is copied."""
OTHER_BITS = (
    "a seed that was restored computes other bits: keep the state in buffers, or return it from get_extra_state; and "
    "build the same module in each call"
)


def check_seed_states(survey: Survey) -> None:
    """Check one seed of each blueprint of the user, for each kind and shape of slot.

    Seeds of built-in blueprints are not checked, because a checkpoint saves all their state.

    Raises:
        TaskError: a seed has state that no checkpoint saves. The error names the blueprint and the attribute.
        SeedBuildFailed: a seed cannot be built or run.
    """
    specs = {spec.path: spec for spec in survey.specs}
    kinds = {(pair.blueprint_id, specs[pair.slot].kind, specs[pair.slot].shape): pair for pair in survey.options}
    for pair in kinds.values():
        made = survey.blueprints.get(pair.blueprint_id)
        if not isinstance(made.factory, Called):
            check_seed_state(made, specs[pair.slot], pair.copies)


def check_seed_state(made: Blueprint, spec: SlotSpec, copies: int = 1) -> None:
    """Run a seed, copy its state into a second seed, and compare both after one more forward pass on the same input.

    Raises: see `check_seed_states`.
    """
    name = f"{SEED}{made.name} at {spec.path}"
    first, second = (made.build(spec, seed_key=0, copies=copies) for _ in range(2))
    before = _attributes(first)
    try:
        with their_code(f"blueprint {made.name}", f"forward at {spec.path}"):
            for _ in range(CALLS):
                _run(first, spec)
            load_tensors(_tensors(second), copy.deepcopy(_tensors(first)))
            load_extra_states(second, extra_states(first))
            outputs = [held_by([_run(seed, spec)]) for seed in (first, second)]
    except Exception as error:
        raise SeedBuildFailed(made.name, spec.path, "forward") from error
    now, other = _attributes(first), _attributes(second)
    for path in different(before, now):
        if now.get(path) != other.get(path):  # equal attributes are restored, or are caches
            why = "each call changes it and no checkpoint keeps it"
            raise TaskError(name, path_in_words(path), f"{why}: {mend_of(name, path, now, before)}")
    if outputs[0] != outputs[1] and torch.device(spec.device).type == "cpu":
        raise TaskError(name, "itself", OTHER_BITS)


def _tensors(seed: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach() for name, one in (*seed.named_parameters(), *seed.named_buffers())}


def _attributes(seed: nn.Module) -> Held:
    return held_by(seed, {id(tensor): None for tensor in (*seed.parameters(), *seed.buffers())})


def _run(seed: nn.Module, spec: SlotSpec) -> object:
    """Run one forward pass in training mode with gradients, as in a step.

    Each call of this function uses the same input and begins with the same random state.
    """
    device = torch.device(spec.device)
    lower = named(spec.autocast) if spec.autocast is not None else None
    with (
        temporary_rng(0, (device,)),
        torch.enable_grad(),
        torch.autocast(device.type, lower, enabled=lower is not None),
    ):
        h = torch.randn(SAMPLES, *spec.shape, dtype=dtype_of(spec), device=device)
        return seed_output(seed.train(), h, None)
