"""The trainer: trains one host and its seeds, and applies plans to the host.

The live host, every fork of a tournament and the twin are instances of the same class. So a fork that begins with a
snapshot computes the same bits as the live host would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from esper import faults
from esper.errors import (
    AdoptionMismatch,
    DependencyViolationError,
    DivergenceUnrecoverable,
    EmergencyStop,
    IsolationViolation,
)
from esper.ground.heartbeat import beat
from esper.leyline.evidence import ResetProbe
from esper.leyline.host_ports import HostEditor
from esper.leyline.reports import AdoptPlan, ChangePlan, GraftPlan, GraftReceipt, HostPlan, RemovePlan, Weights
from esper.leyline.state import TrainingState
from esper.task import Task
from esper.telemetry.context import span
from esper.telemetry.events import Severity, reported, severe
from esper.telemetry.metrics import timed
from esper.tolaria.data import TaskData
from esper.tolaria.dependencies import check_plan
from esper.tolaria.gradient_norm import LargestNorm
from esper.tolaria.guard import check_finite, measure, tell_trip
from esper.tolaria.host_building import build_host, names_of
from esper.tolaria.host_state import TrainerSettings as TrainerSettings  # re-exported: an argument of `Trainer`
from esper.tolaria.loss import batch_loss
from esper.tolaria.measured_host import MeasuredHost
from esper.tolaria.slot_calls import MOST_SKIPPED
from esper.tolaria.snapshot import HostSnapshot
from esper.tolaria.step_times import StepTimes
from esper.tolaria.unkept import Changing, Unkept
from esper.user_code.process_state import check_process
from esper.user_code.their_code import tell_step, their_code

BACKWARD = their_code("task.model", "the backward pass")
OPTIMIZER_STEP = their_code("task.optimizer", "optimizer.step")
SCHEDULER_STEP = their_code("task.scheduler", "scheduler.step")


def tell_violation(violation: IsolationViolation) -> None:
    """Report a violation of isolation as a severe event."""
    severe(
        "isolation_violated",
        Severity.CRITICAL,
        seed_id=violation.seed_id,
        blueprint=violation.blueprint,
        slot=violation.slot,
        leaves=list(violation.leaves),
    )


def never() -> bool:
    """Return False. A trainer has this function as `halted` if no emergency can stop it."""
    return False


class Trainer(MeasuredHost):
    """One host in training. Optimizer steps are numbered from 0 over the whole run.

    `step` is the number of the next step.
    """

    def __init__(
        self,
        task: Task,
        settings: TrainerSettings,
        data: TaskData,
        make_editor: Callable[[nn.Module], HostEditor],
        halted: Callable[[], bool] = never,
    ) -> None:
        host = build_host(task, settings.run_seed, settings.device)
        super().__init__(task, settings, host, make_editor(host), data)
        self._make_editor, self._halted = make_editor, halted
        self._fault_point = f"{settings.role}.step"
        self._round: int | None = None
        """Fence at which the present round ends, for fault points. None: no round has begun."""
        self._audited_now: set[str] = set()
        """Ids of the seeds that were audited since the start of the last round or of the last call of `train_to`."""
        self._norms = LargestNorm()
        """Gradient norms since the start of the present round, or call of `train_to`, before clipping."""
        self._times = StepTimes(settings.role)
        self._losses: list[float] = []
        """Losses of the steps since the start of the present round, or call of `train_to`."""
        self._last_step = 0
        """Step before which the present round, or call of `train_to`, ends."""
        self._unkept: Unkept | None = None
        """Finds changes of state that no checkpoint stores. None until `refuse_unkept` is called."""

    def refuse_unkept(self, changing: Changing) -> None:
        """Refuse at every later fence a change of state that no checkpoint stores. Call it before the first step.

        Args:
            changing: Attributes that the survey's steps changed. They may change again.
        """
        self._unkept = Unkept(self._task, self._data, self, changing)

    # -- training ------------------------------------------------------------------------------------------------

    def run_round(self, fence: int, last_step: int) -> TrainingState:
        """Train until `last_step` steps of the run are done, at fence `fence`, and return the measured values.

        Raises:
            DivergenceUnrecoverable: a loss or gradient was not finite.
            StateNotKept: state that no checkpoint stores has changed for the first time.
            EmergencyStop: an emergency has stopped the run.
        """
        faults.point("tolaria.round", round=fence, step=self.step)
        self._round = fence
        if self._unkept is not None:
            self._unkept.begin_round()
        losses = self._steps_to(last_step)
        self._end_audits()
        mean = sum(losses) / len(losses)
        best = self._best_round
        self._best_round = mean if best is None else min(mean, best)
        self.fence = fence
        check_process(self._settings.role)
        if self._unkept is not None:
            self._unkept.check(fence)
        state = self._state(fence, mean, tuple(losses), self._norms.largest(), best)
        for report in state.blends:
            with span("seed blend", role=self._settings.role, fence=fence, **report.model_dump()):
                pass  # the span is needed only for its attributes
        return state

    def first_step_at(self) -> float | None:
        """Return the Unix time at the end of the first step since construction or restore. None: no step has ended."""
        return self._first_step_at

    def untrained(self) -> TrainingState:
        """Return the training state at fence 0, without measured values."""
        return self._state(0, None, (), None, None)

    def train_to(self, step: int) -> tuple[float, ...]:
        """Train until `step` steps of the run are done, and return the loss of each step.

        No round or fence is counted.
        """
        losses = self._steps_to(step)
        self._end_audits()
        check_process(self._settings.role)
        return tuple(losses)

    def check_emergency(self) -> None:
        """Check for an emergency.

        Raises:
            EmergencyStop: an emergency has stopped the run.
        """
        if self._halted():
            raise EmergencyStop("", "", self.step)

    def _steps_to(self, last_step: int) -> list[float]:
        """Take the steps before `last_step`, and return their losses. The durations of all steps are in the histogram
        afterwards, also if a step raises an error.
        """
        self._begin_audits(last_step)
        losses = self._losses
        try:
            while self.step < last_step:
                losses.append(self._one_step())
        finally:
            self._times.tell()
        return losses

    def _one_step(self) -> float:
        if self.step % self._settings.trace_every == 0 or self._first_step_at is None:  # the first good step is shown
            with span("esper step", role=self._settings.role, step=self.step):
                try:
                    return self._checked_update()
                except Exception as error:
                    self._tell_failed(error)
                    raise
        try:
            return self._checked_update()
        except Exception as error:
            with span("esper step", role=self._settings.role, step=self.step):  # a failed step always gets a span
                self._tell_failed(error)
                raise error

    def _tell_failed(self, error: Exception) -> None:
        """Report the failure of the present step in the current span, if it is one of the guard, and add the number of
        the step to an exception of the user's code.
        """
        tell_step(error, self.step)
        if isinstance(error, DivergenceUnrecoverable):
            tell_trip(error)

    def _checked_update(self) -> float:
        """Check that no emergency and no failed save stops the run. Then take one optimizer step; see `_update`."""
        self.check_emergency()
        self._saver.check()
        faults.point(self._fault_point, round=self._round, step=self.step)
        began_s = time.perf_counter()
        found = self._update()
        self._times.add(began_s)
        return found

    def _update(self) -> float:
        """Take one optimizer step. Return the loss."""
        inputs, targets = self._load(self._next_batch())
        self._editor.set_alphas(self.step)
        output = self._audited_forward(inputs) if self._judged else self._forward(inputs)
        loss = batch_loss(self._task.loss, output, targets)
        BACKWARD.run(loss.backward)
        parameters = self._trained_parameters()
        gradients = [gradient for p in parameters if (gradient := p.grad) is not None]
        value, clip = loss.item(), self._settings.clip_norm
        norm = self._norms.see_exactly(gradients) if clip is not None else None
        try:
            check_finite(self.step, value, norm.item() if norm is not None else self._norms.see(gradients))
        except DivergenceUnrecoverable as error:
            measure(error, {"inputs": inputs, "targets": targets, "outputs": output}, self._losses)
            raise
        if clip is not None and norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        OPTIMIZER_STEP.run(self._optimizer.step)
        self._optimizer.zero_grad(set_to_none=True)
        for optimizer in self._seed_optimizers.values():
            optimizer.step(self.step)
            optimizer.optimizer.zero_grad(set_to_none=True)
        if self._scheduler is not None:
            SCHEDULER_STEP.run(self._scheduler.step)
        self.step += 1
        if self._uncalled:
            self._look_for_calls()
        if self._first_step_at is None:
            self._first_step_at = time.time()
        beat()
        return value

    def _audited_forward(self, inputs: Any) -> Any:
        """Return the output of the forward of a step with seeds. If an audit of isolation is due, make it."""
        if not self._audit_is_due():
            return self._forward(inputs)
        if self._compiled:
            self._audit_eagerly(inputs, self._audit)
            return self._forward(inputs)
        with self._watching(inputs):
            output = self._forward(inputs)
        self._audit()
        return output

    def _begin_audits(self, last_step: int) -> None:
        """Begin to train up to `last_step`. The last step is audited, so that a gate has evidence of the fence at which
        it judges.
        """
        self._set_mode(training=True)
        self._optimizer.zero_grad(set_to_none=True)  # the seed of a fork in this process may have reached this host
        self._audited()  # findings outside of steps are dropped: their changes were undone, and a resume lacks them
        self._audited_now, self._last_step = set(), last_step
        self._norms = LargestNorm(self._trained_parameters())
        self._losses = []

    def _audit_is_due(self) -> bool:
        if not self._judged.keys() <= self._leaks.keys() or self.step + 1 == self._last_step:
            return True
        return any((self.step - start) % self._settings.audit_every == 0 for start in self._judged.values())

    def _end_audits(self) -> None:
        """Record what was found since the last audit. Then audit the seeds whose slots every audited step skipped, in
        forward passes that change no state.
        """
        self._audit()
        for step in range(self.step, self.step + MOST_SKIPPED):
            if self._judged.keys() <= self._audited_now:
                return
            with self._state_kept():
                inputs, _ = self._load(self._data.batch(step))
            self._audit_eagerly(inputs, self._audit)

    def _audit(self) -> None:
        """Record the seeds that reached or changed the host.

        The gate at the next fence culls these seeds; the step continues.
        """
        seen = self._editor.watched()
        self._audited_now |= {*seen}
        found = self._audited()
        for seed_id, violation in found.items():
            if self._leaks.get(seed_id) != violation.leaves:
                tell_violation(violation)
        leaks = {seed_id: violation.leaves for seed_id, violation in found.items()}
        self._leaks = {**dict.fromkeys(seen, ()), **self._leaks, **leaks}

    def _next_batch(self) -> Any:  # Any: the type that the task's collate function returns
        """Load the batch of the present step. The new state of stateful data sets is stored for the next step."""
        if not (self._data.made_with or self._data_state):  # no data set is stateful
            return self._data.batch(self.step)
        with self._data.at(self._data_state):
            batch = self._data.batch(self.step)
            self._data_state = self._data.state()
        return batch

    def _state(
        self, fence: int, mean: float | None, losses: tuple[float, ...], norm: float | None, best: float | None
    ) -> TrainingState:
        return TrainingState(
            fence=fence,
            step=self.step,
            total_steps=self._settings.total_steps,
            train_loss=mean,
            losses=losses,
            gradient_norm=norm,
            best_train_loss=best,
            parameters=self.parameter_count(),
            host_parameters=sum(p.numel() for p in self.host.parameters()),
            blends=self._editor.blend_reports(),
            leaks={seed_id: found for seed_id, found in self._leaks.items() if found},
        )

    # -- changing the host at a fence ----------------------------------------------------------------------------

    def apply(self, plan: ChangePlan, weights: Weights) -> GraftReceipt:
        """Apply a plan. If the same plan was applied before, only return its stored receipt.

        Raises:
            DependencyViolationError: the plan fails `check_plan`, or a different plan was applied under the same
                command id and seed id. The host is not changed.
            IsolationViolation: the seed shares memory with the host or with another seed. The host is not changed.
        """
        faults.point("tolaria.apply")
        with (
            timed("esper.graft.duration"),
            span("trainer apply", role="tolaria", kind=type(plan).__name__, seed_id=plan.seed_id),
        ):
            return self._once(plan, weights, lambda: self._change(plan, weights))

    def adopt(self, plan: AdoptPlan, snapshot: HostSnapshot) -> GraftReceipt:
        """Continue with the state of the fork that won a tournament, instead of the present state. Receipts, the record
        of the best round and the number of the fence are kept.

        The fork trained on the batches of this host up to the same step. If the same plan was carried out before, only
        return its stored receipt.

        Args:
            snapshot: The fork's state at the present step. It is not changed.

        Raises:
            DependencyViolationError: the plan fails `check_plan`, or the snapshot is of another step or has other seeds
                than this host and the plan's. The host is not changed.
            AdoptionMismatch: the weights of this host are not those of the tournament's control (the host is not
                changed), or the weights after the adoption are not those of the fork (the host must not be used).
            IsolationViolation: the seed shares memory with this host or with another seed. The host is not changed.
        """
        with (
            timed("esper.graft.duration"),
            span("trainer apply", role="tolaria", kind=type(plan).__name__, seed_id=plan.seed_id),
        ):
            return self._once(plan, {}, lambda: self._adopt(plan, snapshot))

    def _once(self, plan: HostPlan, weights: Weights, change: Callable[[], None]) -> GraftReceipt:
        """Check a plan, carry it out by `change`, and store its receipt. If the plan was carried out before, return the
        stored receipt. Raises: see `apply`.
        """
        run_id, generation = self._settings.run_id, self._settings.generation
        check_plan(plan, weights, run_id=run_id, generation=generation, modules=self._layers())
        key = (plan.command_id, plan.seed_id)
        if key in self._receipts:
            known, receipt = self._receipts[key]
            if known != plan:
                what, missing = f"plan for seed {plan.seed_id}", "another body under a known id"
                error = DependencyViolationError(what, missing)
                raise reported(error, "dependency_violation", Severity.ERROR, subject=what, missing=missing)
            return receipt
        try:
            change()
        except IsolationViolation as violation:
            tell_violation(violation)
            raise
        receipt = GraftReceipt(
            command_id=plan.command_id,
            seed_id=plan.seed_id,
            generation=plan.generation,
            step=self.step,
            parameters=self.parameter_count(),
        )
        self._receipts[key] = (plan, receipt)
        return receipt

    def _adopt(self, plan: AdoptPlan, snapshot: HostSnapshot) -> None:
        wanted = (self.step, (*self._editor.topology(), plan.graft))
        if (snapshot.step, snapshot.topology) != wanted:
            found = f"step {snapshot.step} and {len(snapshot.topology)} seeds, here {wanted[0]} and {len(wanted[1])}"
            what, missing = f"plan for seed {plan.seed_id}", "a fork of another host"
            error = DependencyViolationError(what, missing, found)
            raise reported(error, "dependency_violation", Severity.ERROR, subject=what, missing=missing)
        self._check_weights(plan, "the live host before the adoption", plan.before_sha256)
        self.graft(plan.graft, snapshot.weights)  # a seed that shares memory is refused here, before anything changes
        leaks, first_step_at = {**snapshot.leaks, **self._leaks}, self._first_step_at
        kept = replace(snapshot, fence=self.fence, best_round=self._best_round, receipts=self._receipts, leaks=leaks)
        self.become(kept)
        self._first_step_at = first_step_at
        faults.point("tolaria.adoption_restored", round=plan.fence)
        self._check_weights(plan, "the live host after the adoption", plan.after_sha256)

    def _check_weights(self, plan: AdoptPlan, what: str, expected: str) -> None:
        """Raises: AdoptionMismatch: the digest of the present weights is not `expected`."""
        if (found := self.weights_sha256()) != expected:
            error = AdoptionMismatch(plan.seed_id, what, found, expected)
            told = {"seed_id": plan.seed_id, "blueprint": plan.graft.blueprint_id, "slot": plan.graft.slot}
            told |= {"what": what, "found": found, "expected": expected}
            raise reported(error, "adoption_mismatch", Severity.CRITICAL, **told)

    def _change(self, plan: ChangePlan, weights: Weights) -> None:
        if isinstance(plan, GraftPlan):
            self.graft(plan, weights)
        elif isinstance(plan, RemovePlan):
            self.remove(plan.seed_id)
            self._best_round = None  # the best loss was measured on the host with the seed
        else:
            self.amend(plan)

    def another(self) -> Trainer:
        """Build a new host from the task and load this host's snapshot into it, as a restore does.

        Raises:
            DependencyViolationError: the new host cannot load the snapshot.
        """
        fresh = Trainer(self._task, self._settings, self._data, self._make_editor)
        fresh.become(self.snapshot())
        return fresh

    def compare_with_unseeded(self, seeds: Mapping[str, str]) -> dict[str, ResetProbe]:
        """Compare the slot of each removed seed with the same slot of a newly built host that never had the seed.

        Args:
            seeds: Seed id -> slot.

        Returns:
            Seed id -> remains of the seed in this host, and the results of comparing the slot's output (bit for bit),
            the `requires_grad` flags, and the names.
        """
        fresh = Trainer(self._task, self._settings, self._data, self._make_editor)
        bare_hooks = {slot: len(fresh.host.get_submodule(slot)._forward_hooks) for slot in seeds.values()}
        flags = [p.requires_grad for p in self.host.parameters()] == [p.requires_grad for p in fresh.host.parameters()]
        names = names_of(self.host) == names_of(fresh.host)
        if names:  # if the names differ, the new host cannot load the snapshot
            fresh.become(self.snapshot())
        grafted = {plan.seed_id: plan.slot for plan in self._editor.topology()}
        found = {}
        for seed_id, slot in seeds.items():
            expected_hooks = bare_hooks[slot] + (slot in grafted.values())
            found[seed_id] = ResetProbe(
                seed_left=seed_id in grafted,
                optimizers_left=int(seed_id in self._seed_optimizers),
                hooks_left=len(self.host.get_submodule(slot)._forward_hooks) - expected_hooks,
                output_equal=names and torch.equal(self.activation(slot), fresh.activation(slot)),
                flags_equal=flags,
                names_equal=names,
            )
        return found
