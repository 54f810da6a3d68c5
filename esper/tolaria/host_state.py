"""One host with its seeds and their optimizers: grafts and removes seeds, makes and loads snapshots."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import DependencyViolationError
from esper.ground.tensors import from_bytes, state_digest
from esper.leyline.checkpoint_record import CheckpointWritten, StateCopied
from esper.leyline.host_ports import HostEditor
from esper.leyline.reports import Amendment, ConfidencePlan, GraftPlan, RatePlan, Weights
from esper.task import Task
from esper.tolaria.background_save import Saver
from esper.tolaria.compiling import compile_host
from esper.tolaria.modes import modes_of, set_training
from esper.tolaria.optim import SeedOptimizer, build_optimizer, build_scheduler, reschedule
from esper.tolaria.optimizer_state import check_steps
from esper.tolaria.snapshot import (
    HostSnapshot,
    Receipts,
    check_blends,
    check_kinds,
    load_optimizer,
    load_scheduler,
    load_tensors,
)
from esper.tolaria.trees import copied
from esper.user_code.extra_state import extra_states, load_extra_states, state_of
from esper.user_code.mends import SEED
from esper.user_code.their_code import their_code


@dataclass(frozen=True)
class TrainerSettings:
    """Settings that a trainer needs in addition to its task."""

    role: str
    """Name of the component in spans, fault points and checks. It is "tolaria" for the live host, and "kasmina" for
    forks and the twin."""
    run_id: str
    generation: int
    run_seed: int
    total_steps: int
    device: str
    """Name of the host's device in torch."""
    compile_backend: str | None
    """Name of the backend of `torch.compile` for the host. None: the host is not compiled."""
    clip_norm: float | None
    """Largest global gradient norm. None: gradients are not clipped."""
    peak_share: float
    """Peak learning rate of a seed, divided by the first learning rate of the task's optimizer; see
    `esper.tolaria.optim.Rates`."""
    audit_every: int
    """Steps between two audits of isolation in the live host."""
    trace_every: int
    """Number of steps from one step with a span to the next step with a span. A failed step always gets a span."""


class GrownHost:
    """All state on which a host's training depends.

    All of it is in one class, so that no part is missing in a snapshot.
    """

    def __init__(self, task: Task, settings: TrainerSettings, host: nn.Module, editor: HostEditor) -> None:
        self._task, self._settings = task, settings
        self.host, self._editor = host, editor
        self._modes = modes_of(host)
        """Training mode of each module. The modes are set after evaluation and before a round, because forwards may
        change them."""
        self._host_parameters = [p for p in host.parameters() if p.requires_grad]
        self._optimizer = build_optimizer(task, self._host_parameters)
        self._scheduler = build_scheduler(task, self._optimizer, settings.total_steps)
        self._seed_optimizers: dict[str, SeedOptimizer] = {}
        self._receipts: Receipts = {}
        self._weights: dict[str, bytes] = {}
        """Digest -> initial weights of every seed that was ever grafted. Checkpoints store these weights with the
        receipts."""
        self._leaks: dict[str, tuple[str, ...]] = {}
        """Seed id -> names of everything outside the seed that the seed changed or that its gradient reached. Empty:
        audits found nothing. No entry: the seed has not been audited."""
        self._judged: dict[str, int] = {}
        """Seed id -> first step of the seed, for each seed that a gate may still judge. These seeds are audited."""
        self._best_round: float | None = None
        self._data_state: dict[str, Any] = {}
        """State of stateful data sets after the last training batch; see `TaskData.state`."""
        self._first_step_at: float | None = None
        self._saver = Saver(settings.run_id)
        self._uncalled: set[str] = set()
        """Ids of the seeds of a compiled host of which no call has been observed since the graft."""
        self._recompile()
        self.step = 0
        self.fence = 0
        """Number of the last fence that the host reached."""

    # -- the compiled forward ------------------------------------------------------------------------------------

    @property
    def _compiled(self) -> bool:
        return self._settings.compile_backend is not None

    def _recompile(self) -> None:
        """If the host is compiled, compile its next forward again, with the present seeds."""
        if self._settings.compile_backend is not None:
            compile_host(self.host, self._settings.compile_backend)

    # -- seeds ---------------------------------------------------------------------------------------------------

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a seed and make its optimizer.

        The caller of a fork calls it directly. For the live host, `apply` calls it after checks.
        """
        self._editor.graft(plan, weights)
        self._recompile()
        if self._compiled:
            self._uncalled.add(plan.seed_id)
        self._weights[plan.weights_digest] = weights[plan.weights_digest]
        self._editor.set_training(True)  # the host's root may be in evaluation mode
        self._editor.set_alphas(self.step)
        self._judged[plan.seed_id] = plan.start_step
        parameters = self._editor.parameters_of(plan.seed_id)
        if parameters:  # torch makes no optimizer without parameters; G1 refuses this seed
            total = self._settings.total_steps
            peak = self._settings.peak_share
            optimizer = SeedOptimizer(self._task, parameters, plan.start_step, total, plan.warmup_steps, peak)
            optimizer.scale = plan.rate_scale
            self._seed_optimizers[plan.seed_id] = optimizer

    def amend(self, change: Amendment) -> None:
        """Change a seed that stays in the host.

        Raises:
            DependencyViolationError: the seed is not in this host; nothing was changed.
        """
        self._editor.amend(change)
        if isinstance(change, RatePlan) and change.seed_id in self._seed_optimizers:
            self._seed_optimizers[change.seed_id].scale = change.rate_scale
        if isinstance(change, ConfidencePlan):
            self._editor.set_alphas(self.step)

    def remove(self, seed_id: str) -> None:
        """Remove a seed and delete its optimizer. For the live host, `apply` calls it."""
        self._editor.remove(seed_id)
        self._recompile()
        self._uncalled.discard(seed_id)
        self._seed_optimizers.pop(seed_id, None)
        self._leaks.pop(seed_id, None)
        self._judged.pop(seed_id, None)

    def release(self) -> nn.Module:
        """Return the host as an ordinary network in evaluation mode, with its seeds as submodules.

        This trainer must not be used afterwards. The network has no reference to the trainer.
        """
        self._editor.release()
        if self._compiled:
            self.host._compiled_call_impl = None
        return self.host.eval()

    # -- tensors -------------------------------------------------------------------------------------------------

    def _trained_parameters(self) -> list[nn.Parameter]:
        found = list[nn.Parameter]()
        for group in self._optimizer.param_groups:
            found += group["params"]
        for seed in self._seed_optimizers.values():
            for group in seed.optimizer.param_groups:
                found += group["params"]
        return found

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the tensors in the host's state dict and of its seeds' tensors, buffers included."""
        state = {name: value for name, value in state_of("task.model", self.host).items() if isinstance(value, Tensor)}
        return state_digest({**state, **self._editor.tensors()})

    def parameter_count(self) -> int:
        """Return the number of elements of all parameters, seeds included. Parameters without a gradient count, too."""
        modules = (self.host, *self._editor.modules().values())
        return sum(p.numel() for module in modules for p in module.parameters())

    def _parameters(self) -> list[nn.Parameter]:
        seeds = [p for plan in self._editor.topology() for p in self._editor.parameters_of(plan.seed_id)]
        return [*self.host.parameters(), *seeds]

    def _all_tensors(self) -> dict[str, Tensor]:
        named: Sequence[tuple[str, Tensor]] = [*self.host.named_parameters(), *self.host.named_buffers()]
        return {**dict(named), **self._editor.tensors()}

    def _set_mode(self, *, training: bool) -> None:
        set_training(self.host, self._modes, training=training)
        self._editor.set_training(training)

    def parts(self) -> dict[str, object]:
        """Return the objects whose state a checkpoint must save, by name.

        These are the objects that were made by fields of the task (model, optimizer, and scheduler if there is one),
        and the module of each seed.
        """
        made = {"task.model": self.host, "task.optimizer": self._optimizer}
        if self._scheduler is not None:
            made["task.scheduler"] = self._scheduler
        seeds = zip(self._editor.topology(), self._editor.modules().values(), strict=True)
        return made | {f"{SEED}{plan.blueprint_id} at {plan.slot}, seed {plan.ordinal}": one for plan, one in seeds}

    # -- copies --------------------------------------------------------------------------------------------------

    def snapshot(self) -> HostSnapshot:
        """Return a copy of all state on which this host's training depends."""
        return self._view().copied()

    def _view(self) -> HostSnapshot:
        """Return the present state as a snapshot that shares all tensors with the host."""
        return HostSnapshot(
            step=self.step,
            fence=self.fence,
            total_steps=self._settings.total_steps,
            topology=self._editor.topology(),
            tensors=self._all_tensors(),
            optimizer=state_of("task.optimizer", self._optimizer),
            scheduler=state_of("task.scheduler", self._scheduler) if self._scheduler is not None else None,
            seed_optimizers={seed_id: o.optimizer.state_dict() for seed_id, o in self._seed_optimizers.items()},
            best_round=self._best_round,
            receipts=self._receipts,
            leaks=self._leaks,
            modules=extra_states(self.host, self._editor.modules()),
            data=self._data_state,
            weights=self._weights,
        )

    def become(self, snapshot: HostSnapshot) -> None:
        """Replace the present state by a snapshot. Neither this call nor later training changes the snapshot.

        The topology is restored first, because seeds and their optimizers must exist before states are loaded into
        them. Counts of seed observations and gradients of a failed step are deleted.

        Raises:
            DependencyViolationError: the snapshot is of another network or task, or an alpha or a vector of a seed
                does not follow from the seed's plan. If its tensors do not fit the host, nothing was changed. After
                other errors the state of this host is invalid.
        """
        check_kinds({**dict(self.host.named_parameters()), **dict(self.host.named_buffers())}, snapshot.tensors)
        self.step, self.fence, self._first_step_at = snapshot.step, snapshot.fence, None
        self._regrow(snapshot.topology, snapshot.weights)
        check_kinds(self._all_tensors(), snapshot.tensors)
        check_blends([self._editor.blend_tensors(step) for step in (self.step - 1, self.step)], snapshot.tensors)
        load_tensors(self._all_tensors(), snapshot.tensors)
        load_extra_states(self.host, snapshot.modules, self._editor.modules())
        self._data_state = copied(snapshot.data, lambda tensor: tensor.clone())
        load_optimizer(self._optimizer, snapshot.optimizer)
        for parameter in self._parameters():
            parameter.grad = None
        self._restore_schedule(snapshot)
        if self._seed_optimizers.keys() != snapshot.seed_optimizers.keys():
            found = sorted(self._seed_optimizers.keys() ^ snapshot.seed_optimizers.keys())
            raise DependencyViolationError("snapshot", "seeds' optimizers differ from the host's", str(found))
        for seed_id, optimizer in self._seed_optimizers.items():
            load_optimizer(optimizer.optimizer, snapshot.seed_optimizers[seed_id])
        self._best_round = snapshot.best_round
        self._receipts, self._leaks = dict(snapshot.receipts), dict(snapshot.leaks)
        self._weights = dict(snapshot.weights)
        self._editor.observations()
        self._editor.blend_reports()
        self._set_mode(training=True)

    def try_update(self) -> None:
        """Check a restored state by one step of every optimizer and of the scheduler. Every entry of the gradients is
        1.

        The step changes the weights. Afterwards the host must not be used until `become` loads a snapshot.

        Raises:
            DependencyViolationError: an optimizer could not have produced its state; see `check_steps`.
            Exception: the error of a step.
        """
        check_steps(self._optimizer, self.step, stepped=self.step > 0)
        for plan in self._editor.topology():
            if (seeds := self._seed_optimizers.get(plan.seed_id)) is not None:
                check_steps(seeds.optimizer, self.step - seeds.start, stepped=self._is_changed(plan))
        if self._scheduler is not None:
            with their_code("task.scheduler", "scheduler.step"):
                self._scheduler.step()

    def _is_changed(self, plan: GraftPlan) -> bool:
        """Return whether the parameters of a seed differ from the initial weights of the seed. False if no step called
        the slot.
        """
        grafted = from_bytes(self._weights[plan.weights_digest]).values()
        now = [parameter.detach().cpu() for parameter in self._editor.parameters_of(plan.seed_id)]
        return not all(any(torch.equal(one, was.to(one.dtype)) for was in grafted) for one in now)

    def _restore_schedule(self, snapshot: HostSnapshot) -> None:
        """Load the scheduler's state. If the run's length has changed, use the schedule of the new length."""
        load_scheduler(self._scheduler, snapshot.scheduler)
        if self._scheduler is not None and snapshot.total_steps != self._settings.total_steps:
            total = self._settings.total_steps
            reschedule(self._task, self._host_parameters, self._optimizer, self._scheduler, self.step, total)

    def _regrow(self, topology: Sequence[GraftPlan], weights: Weights) -> None:
        """Remove and graft seeds so that the topology becomes `topology`.

        All seeds after the first difference are removed and grafted again, because the seeds of a slot must be in graft
        order.
        """
        now = self._editor.topology()
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(now, topology, strict=False))))
        for plan in reversed(now[same:]):
            self.remove(plan.seed_id)
        for plan in topology[same:]:
            self.graft(plan, weights)

    def restore(self, snapshot: HostSnapshot, generation: int) -> None:
        """Load a snapshot and continue in a new generation. From this call on, plans of older generations are refused.

        Raises:
            DependencyViolationError: `generation` is older than the generation of this trainer, or `become` raised the
                error.
        """
        self._refuse_below(self._settings.generation, generation)
        self.become(snapshot)
        self._settings = replace(self._settings, generation=generation)

    def _refuse_below(self, least: int, generation: int) -> None:
        if generation < least:
            raise DependencyViolationError("restore", "an older generation", f"{generation}, at least {least} here")

    def copy_state(self, fence: int) -> StateCopied:
        """Copy the present state into memory, over the previous copy. Call it after `observe` at the same fence.

        Raises:
            StoreWriteFailed: the running save failed. This call waits for the end of that save, because the save reads
                the memory.
        """
        self.fence = fence
        return self._saver.copy_state(self._view(), self._settings.generation).record

    def roll_back(self, generation: int) -> StateCopied | None:
        """Load the last state that `copy_state` or `save` copied, and begin a new generation.

        Return None if no state was copied.

        Raises:
            DependencyViolationError: the generation is not newer than the generation of this trainer. Nothing was
                changed.
        """
        start, held = time.monotonic(), self._saver.held
        if held is None:
            return None
        self._refuse_below(self._settings.generation + 1, generation)
        self.restore(held.snapshot, generation)
        return held.record.model_copy(update={"generation": generation, "seconds": time.monotonic() - start})

    def save(self, path: Path, states: Mapping[str, str], incubation: Mapping[str, Any]) -> None:
        """Copy the present state, and start writing the copy and the states of other components to a new file.

        The file name must be new.

        Training may continue after this call. If the write fails, the next step raises the error. If another save is
        running, this call waits for its end.

        Args:
            states: Name of another component -> state of the component, as text.
            incubation: Plain values and snapshots of other hosts. These values must not change until `saved` returns.

        Raises:
            StoreWriteFailed: the previous save failed. No write was started.
        """
        self._saver.save(path, self._view(), self._settings.generation, states, incubation)

    def saved(self) -> CheckpointWritten:
        """Wait until the last save is durable, and return its record. Any thread may call it.

        Raises:
            StoreWriteFailed: the save failed.
        """
        return self._saver.saved()
