"""One host with its seeds and the optimizers of both: changed at a fence, copied, kept, put back. It never trains."""

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
from esper.leyline.checkpoint_record import CheckpointWritten, MemoryCopy
from esper.leyline.ports import HostEditor
from esper.leyline.reports import GraftPlan, Weights
from esper.task import Task
from esper.tolaria.background_save import Saver
from esper.tolaria.modes import modes_of, set_training
from esper.tolaria.optim import SeedOptimizer, build_optimizer, build_scheduler, reschedule
from esper.tolaria.optimizer_state import check_steps
from esper.tolaria.snapshot import HostSnapshot, Receipts, check_kinds, load_optimizer, load_scheduler, load_tensors
from esper.tolaria.trees import copied
from esper.user_code.extra_state import extra_states, load_extra_states, state_of
from esper.user_code.their_code import their_code


@dataclass(frozen=True)
class TrainerSettings:
    """What a trainer is told beside its task."""

    role: str
    """On whose behalf it trains: "tolaria" for the live host, "kasmina" for forks and the twin."""
    run_id: str
    generation: int
    run_seed: int
    total_steps: int
    device: str
    clip_norm: float | None
    peak_share: float
    """Peak rate of a seed over what the task's optimizer is made with; see `esper.tolaria.optim.peak_share`."""
    audit_every: int
    """Steps between two audits of isolation in the live host."""
    trace_every: int
    """Steps between two steps that get a span; a step that fails always gets one."""


class GrownHost:
    """All state that decides a host's future, in one place, so that a snapshot cannot forget any of it."""

    def __init__(self, task: Task, settings: TrainerSettings, host: nn.Module, editor: HostEditor) -> None:
        self._task, self._settings = task, settings
        self.host, self._editor = host, editor
        self._modes = modes_of(host)
        """Those that it trains in; evaluation leaves them for a while, and so may the model's own forward."""
        self._host_parameters = [p for p in host.parameters() if p.requires_grad]
        self._optimizer = build_optimizer(task, self._host_parameters)
        self._scheduler = build_scheduler(task, self._optimizer, settings.total_steps)
        self._seed_optimizers: dict[str, SeedOptimizer] = {}
        self._receipts: Receipts = {}
        self._weights: dict[str, bytes] = {}
        """First weights of every seed that was ever grafted, by digest; checkpoints hold them beside the receipts."""
        self._leaks: dict[str, tuple[str, ...]] = {}
        self._isolated: dict[str, int] = {}  # first step of each isolated seed
        self._best_round: float | None = None
        self._data_state: dict[str, Any] = {}
        """Of data sets that keep a state by themselves; see `TaskData.state`."""
        self._first_step_at: float | None = None
        self._saver = Saver(settings.run_id)
        self.step = 0
        self.fence = 0
        """The last one that it came to."""

    # -- seeds ---------------------------------------------------------------------------------------------------

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a seed with an optimizer of its own, without the checks of `apply`: for forks."""
        self._editor.graft(plan, weights)
        self._weights[plan.weights_digest] = weights[plan.weights_digest]
        self._editor.set_training(True)  # whatever the mode of the host's root
        self._editor.set_alphas(self.step)
        if plan.isolated:
            self._isolated[plan.seed_id] = plan.start_step
        parameters = self._editor.parameters_of(plan.seed_id)
        if parameters:  # a seed without any is for G1 to refuse; torch makes no optimizer over nothing
            total = self._settings.total_steps
            peak = self._settings.peak_share
            optimizer = SeedOptimizer(self._task, parameters, plan.start_step, total, plan.warmup_steps, peak)
            self._seed_optimizers[plan.seed_id] = optimizer

    def remove(self, seed_id: str) -> None:
        """Detach a seed and forget its optimizer, without the checks of `apply`: for forks."""
        self._editor.remove(seed_id)
        self._seed_optimizers.pop(seed_id, None)
        self._leaks.pop(seed_id, None)
        self._isolated.pop(seed_id, None)

    def release(self) -> nn.Module:
        """Give the host away as an ordinary network, in evaluation mode, with its seeds as a part of it.

        This trainer is not to be used again; nothing of it is held by the network.
        """
        self._editor.release()
        return self.host.eval()

    # -- tensors -------------------------------------------------------------------------------------------------

    def _trained_parameters(self) -> list[nn.Parameter]:
        optimizers = [self._optimizer, *(o.optimizer for o in self._seed_optimizers.values())]
        return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]

    def weights_sha256(self) -> str:
        """Digest of the tensors in the host's state dict and of its seeds' tensors, buffers included."""
        state = {name: value for name, value in state_of("task.model", self.host).items() if isinstance(value, Tensor)}
        return state_digest({**state, **self._editor.tensors()})

    def parameter_count(self) -> int:
        """Elements of all parameters, the seeds' included."""
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
        """The objects of the task's own that a step works on, by the field of the task that made them."""
        made = {"task.model": self.host, "task.optimizer": self._optimizer}
        return made if self._scheduler is None else {**made, "task.scheduler": self._scheduler}

    # -- copies --------------------------------------------------------------------------------------------------

    def snapshot(self) -> HostSnapshot:
        """Everything that this host's future depends on, copied."""
        return self._view().copied()

    def _view(self) -> HostSnapshot:
        """What a snapshot copies, sharing all tensors with the host."""
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
        """Turn this trainer, whatever it was and held, into what the snapshot was taken of, which stays the caller's.

        What was counted of its seeds since they were last observed, and gradients of a step that failed, are gone.

        Raises:
            DependencyViolationError: it is of another network or task. Nothing was changed if that is seen in the
                host's own tensors.
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
        self._set_mode(training=True)

    def try_update(self) -> None:
        """Have every optimizer and the scheduler take one step on gradients of ones: a trial of what was restored.

        This host is not to be used any more, except to `become` something.

        Raises:
            DependencyViolationError: the state of an optimizer is not one that its steps leave behind.
            Exception: what a step raised.
        """
        check_steps(self._optimizer, self.step, stepped=self.step > 0)
        for plan in self._editor.topology():
            if (seeds := self._seed_optimizers.get(plan.seed_id)) is not None:
                check_steps(seeds.optimizer, self.step - seeds.start, stepped=self._is_changed(plan))
        if self._scheduler is not None:
            with their_code("task.scheduler", "scheduler.step"):
                self._scheduler.step()

    def _is_changed(self, plan: GraftPlan) -> bool:
        """A parameter of a seed differs from what was grafted. None does where every step so far skipped the slot."""
        grafted = from_bytes(self._weights[plan.weights_digest]).values()
        now = [parameter.detach().cpu() for parameter in self._editor.parameters_of(plan.seed_id)]
        return not all(any(torch.equal(one, was.to(one.dtype)) for was in grafted) for one in now)

    def _restore_schedule(self, snapshot: HostSnapshot) -> None:
        """Put the schedule back; where the run is longer now, it goes on with that of the longer run."""
        load_scheduler(self._scheduler, snapshot.scheduler)
        if self._scheduler is not None and snapshot.total_steps != self._settings.total_steps:
            total = self._settings.total_steps
            reschedule(self._task, self._host_parameters, self._optimizer, self._scheduler, self.step, total)

    def _regrow(self, topology: Sequence[GraftPlan], weights: Weights) -> None:
        """Graft what a topology has and remove what it has not; order in a stack is that of grafting."""
        now = self._editor.topology()
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(now, topology, strict=False))))
        for plan in reversed(now[same:]):
            self.remove(plan.seed_id)
        for plan in topology[same:]:
            self.graft(plan, weights)

    def restore(self, snapshot: HostSnapshot, generation: int) -> None:
        """Become what the snapshot was taken of, in a new generation: plans of an older one are refused from now on.

        Raises:
            DependencyViolationError: the generation is older than this trainer's; or see `become`.
        """
        self._refuse_below(self._settings.generation, generation)
        self.become(snapshot)
        self._settings = replace(self._settings, generation=generation)

    def _refuse_below(self, least: int, generation: int) -> None:
        if generation < least:
            raise DependencyViolationError("restore", "an older generation", f"{generation}, at least {least} here")

    def keep(self, fence: int) -> MemoryCopy:
        """Copy the present state into memory, in place of what was kept. To be called after `observe` at that fence.

        Raises:
            StoreWriteFailed: the save in flight, which is awaited because it reads that memory, could not be written.
        """
        self.fence = fence
        return self._saver.keep(self._view(), self._settings.generation).kept

    def roll_back(self, generation: int) -> MemoryCopy | None:
        """Restore what was kept, in place and in a new generation; None: nothing is kept and nothing was changed.

        Raises:
            DependencyViolationError: the generation is not newer than this trainer's. Nothing was changed.
        """
        start, held = time.monotonic(), self._saver.held
        if held is None:
            return None
        self._refuse_below(self._settings.generation + 1, generation)
        self.restore(held.snapshot, generation)
        return held.kept.model_copy(update={"generation": generation, "seconds": time.monotonic() - start})

    def save(self, path: Path, rooms: Mapping[str, str], nursery: Mapping[str, Any]) -> None:
        """Keep the present state and begin to write it, with what the other rooms gave, to a file never used before.

        Training may go on; if the write fails, the next step raises why. One save is in flight: a second one waits.

        Args:
            rooms: The state of the other rooms as text, by name.
            nursery: Plain values and snapshots of other hosts, which must not change until `saved` returns.

        Raises:
            StoreWriteFailed: the save before could not be written; none was begun.
        """
        self._saver.save(path, self._view(), self._settings.generation, rooms, nursery)

    def saved(self) -> CheckpointWritten:
        """The record of the last save, once it is durable. It may be asked from another thread.

        Raises:
            StoreWriteFailed: it could not be written.
        """
        return self._saver.saved()
