"""One host with its seeds and their optimizers: grafts and removes seeds, takes and loads snapshots. No training."""

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
from esper.leyline.reports import Amendment, ConfidencePlan, GraftPlan, JoinPlan, RatePlan, Weights
from esper.task import Task
from esper.tolaria.background_save import Saver
from esper.tolaria.compiling import compile_host
from esper.tolaria.modes import modes_of, set_training
from esper.tolaria.optim import SeedOptimizer, build_optimizer, build_scheduler, reschedule
from esper.tolaria.optimizer_state import check_steps
from esper.tolaria.snapshot import HostSnapshot, Receipts, check_kinds, load_optimizer, load_scheduler, load_tensors
from esper.tolaria.trees import copied
from esper.user_code.extra_state import extra_states, load_extra_states, state_of
from esper.user_code.their_code import their_code


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of a trainer beside its task."""

    role: str
    """Role in spans, fault points and checks: "tolaria" for the live host, "kasmina" for forks and the twin."""
    run_id: str
    generation: int
    run_seed: int
    total_steps: int
    device: str
    """Device of the host, as torch names it."""
    compile_backend: str | None
    """What the host is compiled with, as torch names it. None: the host is not compiled."""
    clip_norm: float | None
    """Largest global gradient norm. None: no clipping."""
    peak_share: float
    """Peak learning rate of a seed, divided by the rate that the task's optimizer is made with; see
    `esper.tolaria.optim.peak_share`."""
    audit_every: int
    """Steps between two audits of isolation in the live host."""
    trace_every: int
    """Steps between two steps that get a span. A failed step always gets one."""


class GrownHost:
    """All state that a host's training depends on, in one class, so that a snapshot cannot miss a part of it."""

    def __init__(self, task: Task, settings: TrainerSettings, host: nn.Module, editor: HostEditor) -> None:
        self._task, self._settings = task, settings
        self.host, self._editor = host, editor
        self._modes = modes_of(host)
        """Training mode of each module. Set after evaluation and before a round, as forwards may change modes."""
        self._host_parameters = [p for p in host.parameters() if p.requires_grad]
        self._optimizer = build_optimizer(task, self._host_parameters)
        self._scheduler = build_scheduler(task, self._optimizer, settings.total_steps)
        self._seed_optimizers: dict[str, SeedOptimizer] = {}
        self._receipts: Receipts = {}
        self._weights: dict[str, bytes] = {}
        """Digest -> initial weights of every seed that was ever grafted. Checkpoints store them with the receipts."""
        self._leaks: dict[str, tuple[str, ...]] = {}
        """Seed id -> host parameters that its gradient reached; empty if audits found none; absent before an audit."""
        self._isolated: dict[str, int] = {}
        """Seed id -> first step, of each isolated seed."""
        self._best_round: float | None = None
        self._data_state: dict[str, Any] = {}
        """State of stateful data sets after the last training batch; see `TaskData.state`."""
        self._first_step_at: float | None = None
        self._saver = Saver(settings.run_id)
        self._uncalled: set[str] = set()
        """Ids of the seeds of a compiled host that were not seen to be called since their graft."""
        self._recompile()
        self.step = 0
        self.fence = 0
        """Number of the last fence that was reached."""

    # -- the compiled forward ------------------------------------------------------------------------------------

    @property
    def _compiled(self) -> bool:
        return self._settings.compile_backend is not None

    def _recompile(self) -> None:
        """Have the next forward compiled with the present seeds, if the host is compiled."""
        if self._settings.compile_backend is not None:
            compile_host(self.host, self._settings.compile_backend)

    # -- seeds ---------------------------------------------------------------------------------------------------

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a seed and make its optimizer. Forks call it directly; the live host by `apply`, with checks."""
        self._editor.graft(plan, weights)
        self._recompile()
        if self._compiled:
            self._uncalled.add(plan.seed_id)
        self._weights[plan.weights_digest] = weights[plan.weights_digest]
        self._editor.set_training(True)  # the host's root may be in evaluation mode
        self._editor.set_alphas(self.step)
        if plan.isolated:
            self._isolated[plan.seed_id] = plan.start_step
        parameters = self._editor.parameters_of(plan.seed_id)
        if parameters:  # torch makes no optimizer without parameters; G1 refuses such a seed
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
        match change:
            case JoinPlan() | ConfidencePlan(joins=True):
                self._isolated.pop(change.seed_id, None)
            case RatePlan() if change.seed_id in self._seed_optimizers:
                self._seed_optimizers[change.seed_id].scale = change.rate_scale
        if isinstance(change, ConfidencePlan):
            self._editor.set_alphas(self.step)

    def remove(self, seed_id: str) -> None:
        """Detach a seed and delete its optimizer. Forks call it directly; the live host through `apply`."""
        self._editor.remove(seed_id)
        self._recompile()
        self._uncalled.discard(seed_id)
        self._seed_optimizers.pop(seed_id, None)
        self._leaks.pop(seed_id, None)
        self._isolated.pop(seed_id, None)

    def release(self) -> nn.Module:
        """Return the host as an ordinary network in evaluation mode, with its seeds as submodules.

        This trainer must not be used afterwards. The network holds no reference to it.
        """
        self._editor.release()
        if self._compiled:
            self.host._compiled_call_impl = None
        return self.host.eval()

    # -- tensors -------------------------------------------------------------------------------------------------

    def _trained_parameters(self) -> list[nn.Parameter]:
        found = [p for group in self._optimizer.param_groups for p in group["params"]]
        for seed in self._seed_optimizers.values():
            found += [p for group in seed.optimizer.param_groups for p in group["params"]]
        return found

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the tensors in the host's state dict and of its seeds' tensors, buffers included."""
        state = {name: value for name, value in state_of("task.model", self.host).items() if isinstance(value, Tensor)}
        return state_digest({**state, **self._editor.tensors()})

    def parameter_count(self) -> int:
        """Return the number of elements of all parameters, seeds included."""
        return sum(p.numel() for p in self._parameters())

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
        """Return field of the task -> object that it made: model, optimizer and, if the task has one, scheduler."""
        made = {"task.model": self.host, "task.optimizer": self._optimizer}
        return made if self._scheduler is None else {**made, "task.scheduler": self._scheduler}

    # -- copies --------------------------------------------------------------------------------------------------

    def snapshot(self) -> HostSnapshot:
        """Return a copy of all state that this host's training depends on."""
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
            modules=extra_states(self.host),
            data=self._data_state,
            weights=self._weights,
        )

    def become(self, snapshot: HostSnapshot) -> None:
        """Load a snapshot, whatever the present state is. The snapshot is not changed, now or later.

        Topology comes first: the tensors and optimizers of seeds must exist before their states are loaded. Counts of
        seed observations and the gradients of a failed step are deleted.

        Raises:
            DependencyViolationError: the snapshot is of another network or task. Nothing was changed if already the
                tensors of the host itself differ; otherwise the state is invalid.
        """
        check_kinds({**dict(self.host.named_parameters()), **dict(self.host.named_buffers())}, snapshot.tensors)
        self.step, self.fence, self._first_step_at = snapshot.step, snapshot.fence, None
        self._regrow(snapshot.topology, snapshot.weights)
        load_tensors(self._all_tensors(), snapshot.tensors)
        load_extra_states(self.host, snapshot.modules)
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
        """Check a restored state: step every optimizer once on gradients of ones, and the scheduler once.

        The step changes the weights: the host must not be used afterwards until `become` loads a snapshot.

        Raises:
            DependencyViolationError: the state of an optimizer could not come from its steps; see `check_steps`.
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
        """Whether a seed's parameters differ from its initial weights. False if no step so far called the slot."""
        grafted = from_bytes(self._weights[plan.weights_digest]).values()
        now = [parameter.detach().cpu() for parameter in self._editor.parameters_of(plan.seed_id)]
        return not all(any(torch.equal(one, was.to(one.dtype)) for was in grafted) for one in now)

    def _restore_schedule(self, snapshot: HostSnapshot) -> None:
        """Load the scheduler's state. If the run has another length now, use the schedule of that length."""
        load_scheduler(self._scheduler, snapshot.scheduler)
        if self._scheduler is not None and snapshot.total_steps != self._settings.total_steps:
            total = self._settings.total_steps
            reschedule(self._task, self._host_parameters, self._optimizer, self._scheduler, self.step, total)

    def _regrow(self, topology: Sequence[GraftPlan], weights: Weights) -> None:
        """Remove and graft seeds until the topology is `topology`.

        Seeds after the first difference are removed and grafted again, since the order in a stack is the graft order.
        """
        now = self._editor.topology()
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(now, topology, strict=False))))
        for plan in reversed(now[same:]):
            self.remove(plan.seed_id)
        for plan in topology[same:]:
            self.graft(plan, weights)

    def restore(self, snapshot: HostSnapshot, generation: int) -> None:
        """Load a snapshot and continue in a new generation: plans of older generations are refused from now on.

        Raises:
            DependencyViolationError: `generation` is older than this trainer's; or see `become`.
        """
        self._refuse_below(self._settings.generation, generation)
        self.become(snapshot)
        self._settings = replace(self._settings, generation=generation)

    def _refuse_below(self, least: int, generation: int) -> None:
        if generation < least:
            raise DependencyViolationError("restore", "an older generation", f"{generation}, at least {least} here")

    def copy_state(self, fence: int) -> StateCopied:
        """Copy the present state into memory, over the previous copy. Call it after `observe` at that fence.

        Raises:
            StoreWriteFailed: the save in flight failed. It is awaited first, because it reads that memory.
        """
        self.fence = fence
        return self._saver.copy_state(self._view(), self._settings.generation).record

    def roll_back(self, generation: int) -> StateCopied | None:
        """Load the state that `copy_state` or `save` last copied, in a new generation. Return None if there is none.

        Raises:
            DependencyViolationError: the generation is not newer than this trainer's. Nothing was changed.
        """
        start, held = time.monotonic(), self._saver.held
        if held is None:
            return None
        self._refuse_below(self._settings.generation + 1, generation)
        self.restore(held.snapshot, generation)
        return held.record.model_copy(update={"generation": generation, "seconds": time.monotonic() - start})

    def save(self, path: Path, states: Mapping[str, str], incubation: Mapping[str, Any]) -> None:
        """Copy the present state and start writing it, with the states of other components, to a new file.

        The name of the file must never have been used before.

        Training may continue. If the write fails, the next step raises its error. If another save is in flight, this
        call waits for it.

        Args:
            states: The state of the other components as text, by name.
            incubation: Plain values and snapshots of other hosts, which must not change until `saved` returns.

        Raises:
            StoreWriteFailed: the previous save failed. No write was started.
        """
        self._saver.save(path, self._view(), self._settings.generation, states, incubation)

    def saved(self) -> CheckpointWritten:
        """Wait until the last save is durable and return its record. May be called from another thread.

        Raises:
            StoreWriteFailed: the save failed.
        """
        return self._saver.saved()
