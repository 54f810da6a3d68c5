"""Loads the grown network of a run from a verified checkpoint, as an ordinary module. The run is only read.

No lock is taken. If the run is in progress, its last committed fence is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper.archive.history import Past, check_sound, read_past
from esper.archive.identity import Identity
from esper.archive.resuming import check_sealed, task_for
from esper.archive.run_directory import checkpoints_folder
from esper.errors import CheckpointCorrupt, ConfigError, RunDirectoryError, TaskError
from esper.ground.arguments import path_of
from esper.ground.installed_versions import versions
from esper.ground.temporary_rng import temporary_rng
from esper.ground.tensors import state_crc32c, state_digest
from esper.kasmina.blueprints.catalogue import BLUEPRINTS, BlueprintRegistry
from esper.kasmina.blueprints.precision import dtype_of
from esper.kasmina.host.attached import Seed, attach
from esper.kasmina.host.blending import blend_of
from esper.kasmina.host.rebuilt import difference, structure_digest
from esper.leyline.checkpoint_record import CheckpointWritten
from esper.leyline.finish import finish_in
from esper.leyline.reports import GraftPlan
from esper.task import Task
from esper.tolaria.checkpoint_file import load_written
from esper.tolaria.host_building import build_host
from esper.tolaria.snapshot import load_tensors
from esper.tolaria.snapshot_codec import from_plain, incubation_of
from esper.user_code.extra_state import load_extra_states, state_of
from esper.user_code.task_reference import given_task
from esper.user_code.their_code import refused_as_theirs


@dataclass(frozen=True)
class Loaded:
    """A grown network with its task, its run and its checkpoint."""

    network: nn.Module
    task: Task
    identity: Identity
    checkpoint: CheckpointWritten
    topology: tuple[GraftPlan, ...]
    """The seeds of the network, in the order in which they were grafted."""


def load(
    run_dir: str | os.PathLike[str],
    *,
    task: Task | str | None = None,
    fence: int | None = None,
    generation: int | None = None,
) -> nn.Module:
    """Load the grown network of a run, on the CPU and in evaluation mode, with the same bits as in its trainer.

    If the run chose its twin at its end (`growth.finish`), the last fence has the twin, which has no seeds.

    The seeds are submodules, with the same names as in the run. The network can be moved, copied, saved and trained
    like any module, and called by many threads. The run is only read, and may be in progress.

    Args:
        run_dir: A run directory, or a snapshot of a run.
        task: The task of the run, or its reference as a text (`file.py:name`). Needed only if `run.json` has no
            reference to it. Only its `model` is used.
        fence: A fence whose checkpoint still exists. Default: the last fence.
        generation: Number of the generation whose last checkpoint is loaded. A run begins with generation 1; each
            resume and each restart of the whole run begins the next. With `fence`, the checkpoint of that fence must be
            of this generation. Checkpoints that a later generation took back are not found.

    Raises:
        RunDirectoryError: no run is here, or it has no checkpoint yet.
        ConfigError: an argument has a wrong type, no checkpoint of `fence` or `generation` exists, or a blueprint of
            the run is not registered here.
        TaskError: the task is missing, has changed, or its `model` builds another network than the run's.
        CheckpointCorrupt: the checkpoint is damaged. An earlier checkpoint is loaded only if `fence` names it.
        StoreCorrupt: `run.json` is damaged, or the journal is damaged and no `fence` was given.
    """
    return load_grown(path_of("run_dir", run_dir), task, fence, generation).network


def load_grown(
    run_dir: Path, task: Task | str | None = None, fence: int | None = None, generation: int | None = None
) -> Loaded:
    """Like `load`, but return the network with its task, its run and its checkpoint."""
    given = given_task(task)[0] if task is not None else None
    past, checkpoint, content = _read(run_dir, fence, generation)
    identity = past.identity
    task, _ = task_for(identity, given)
    finish = finish_in(content["rooms"]["line"])
    as_twin = finish.twin if finish is not None and finish.network == "twin" else None
    snapshot = incubation_of(content["nursery"])["twin"] if as_twin is not None else from_plain(content["trainer"])
    network = build_network(task, identity)
    modules = structure_digest(network)
    _grow(network, identity, snapshot.topology, BLUEPRINTS)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    _load_checked(network, tensors, snapshot.tensors)
    _check_modules(network, identity, modules)
    load_extra_states(network, snapshot.modules)
    if as_twin is not None:
        sound = state_digest(_named(network)) == as_twin.weights_sha256
    else:
        sound = state_crc32c(tensors) == checkpoint.weights_crc32c
    if not sound:
        file = checkpoints_folder(run_dir) / checkpoint.file
        raise CheckpointCorrupt(str(file), "its weights are not those from which its record was made")
    return Loaded(network.eval(), task, identity, checkpoint, snapshot.topology)


def _named(network: nn.Module) -> dict[str, Tensor]:
    state = state_of("task.model", network)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


# -- the checkpoint ----------------------------------------------------------------------------------------------


def _read(run_dir: Path, fence: int | None, generation: int | None) -> tuple[Past, CheckpointWritten, dict[str, Any]]:
    """Return the history of the run, and the record and verified content of a checkpoint. Its tensors are
    memory-mapped.

    A run in progress may drop a checkpoint after the journal was read. Then the journal is read again.
    """
    refused = None
    while True:
        past = read_past(run_dir)
        check_sealed(run_dir, past)
        checkpoint = _chosen(run_dir, past, fence, generation)
        try:
            return past, checkpoint, load_written(checkpoints_folder(run_dir), checkpoint)
        except CheckpointCorrupt:
            if checkpoint == refused:
                raise
            refused = checkpoint


def _chosen(run_dir: Path, past: Past, fence: int | None, generation: int | None) -> CheckpointWritten:
    if not past.commits:
        raise RunDirectoryError("RUN", str(run_dir), "it has no checkpoint yet; there is no network to load")
    if fence is None:
        check_sound(run_dir, past)  # the unreadable records may be of later checkpoints
    found = list(past.commits)
    for field, wanted in (("generation", generation), ("fence", fence)):
        there = sorted({getattr(one, field) for one in found})
        found = [one for one in found if wanted is None or (getattr(one, field) == wanted and type(wanted) is int)]
        if not found:
            of = f" of generation {generation}" if field == "fence" and generation is not None else ""
            kept = ", ".join(map(str, there))
            raise ConfigError(field, wanted, f"no such checkpoint exists; the run has those{of} of {field} {kept}")
    return found[-1]


# -- the network -------------------------------------------------------------------------------------------------


def _grow(
    network: nn.Module, identity: Identity, topology: tuple[GraftPlan, ...], blueprints: BlueprintRegistry
) -> None:
    """Attach a run's seeds to its host. Their tensors are filled from the checkpoint later.

    Raises:
        TaskError: the host has no module at the slot of a seed.
        ConfigError: a blueprint is not registered here.
    """
    specs = {spec.path: spec.model_copy(update={"device": "cpu"}) for spec in identity.slots}
    seeds = []
    for plan in topology:
        spec = specs[plan.slot]
        module = blueprints.get(plan.blueprint_id).build(spec, seed_key=0, copies=plan.copies)
        alpha, blend = torch.zeros((), dtype=dtype_of(spec)), blend_of(plan.blend)
        seeds.append((plan.slot, plan.ordinal, Seed(module, alpha, blend.formula, blend.vector(plan.blend, spec))))
    try:
        attach(network, seeds)
    except ValueError as error:
        raise _other(network, str(error)) from error


def build_network(task: Task, identity: Identity) -> nn.Module:
    """Build the host of a run with its task, on the CPU. The caller's random generators are unchanged afterwards.

    Raises:
        TaskError: the user's factory raised, or did not return a network.
    """
    with temporary_rng(0), refused_as_theirs():
        return build_host(task, identity.config.run.seed, "cpu")


def _load_checked(network: nn.Module, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Raises: TaskError: the tensors of network and checkpoint do not match. Nothing was copied."""
    if how := difference(tensors, kept):
        raise _other(network, how)
    load_tensors(tensors, kept)


def _check_modules(network: nn.Module, identity: Identity, modules: str) -> None:
    """Raises: TaskError: a module has another class or other settings than in the run, although the tensors are
    equal."""
    # not compared, because other versions may print settings differently
    same_torch = identity.versions["torch"] == versions()["torch"]
    if same_torch and identity.host_modules_sha256 not in (None, modules):
        raise _other(network, "a module has another class, or a setting such as a stride differs")


def _other(network: nn.Module, how: str) -> TaskError:
    return TaskError("task.model", type(network).__name__, f"it builds another network than the run's: {how}")
