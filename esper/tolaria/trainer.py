"""The trainer: one host, its seeds and their optimizers, step by step. It applies plans; it never makes one.

The live host, every fork of a tournament and the twin are instances of the same class: a fork that starts from a
snapshot computes the same bits as the live host would have computed from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper import faults
from esper.errors import DependencyViolationError, EmergencyStop, IsolationViolation, TaskError
from esper.ground.heartbeat import beat
from esper.ground.random_streams import seed_process
from esper.ground.tensors_kept import tensors_kept
from esper.leyline.evidence import GradientProbe, HostObservation, ResetProbe, SampleLosses
from esper.leyline.ports import HostEditor
from esper.leyline.reports import GraftPlan, GraftReceipt, HostPlan, JoinPlan, Weights
from esper.leyline.stages import Stage
from esper.leyline.state import TrainingState
from esper.task import Loss, Task
from esper.telemetry.context import span
from esper.telemetry.events import Severity, reported, severe
from esper.tolaria.companions import depends_on_batch
from esper.tolaria.data import EVALUATION_BATCH, Slice, TaskData, batch_name, split_pair, to_device
from esper.tolaria.dependencies import check_plan
from esper.tolaria.guard import check_finite
from esper.tolaria.host_modules import check_modules
from esper.tolaria.host_state import GrownHost
from esper.tolaria.host_state import TrainerSettings as TrainerSettings  # re-exported: an argument of `Trainer`
from esper.tolaria.loss import batch_loss, sample_loss
from esper.tolaria.measuring import check_measures, losses_of, means_over
from esper.tolaria.modes import begin_training
from esper.tolaria.optim import global_norm
from esper.tolaria.task_metrics import Metric, Seen
from esper.tolaria.unkept import Changing, Unkept
from esper.tolaria.weighing import Weighted
from esper.user_code.extra_state import extra_states, extra_states_kept, state_of
from esper.user_code.process_state import check_process
from esper.user_code.their_code import their_code

MOST_SKIPPED = 100
"""Number of consecutive training batches that may skip a slot before it counts as never called. A slot that 9 of 10
forwards skip at random is called in at least one of them with a probability above 1 - 1e-4."""


def never() -> bool:
    """Return False: the `halted` of a trainer that no emergency can stop."""
    return False


class Trainer(GrownHost):
    """One host in training. Optimizer steps are numbered from 0 over the whole run; `step` is the next number."""

    def __init__(
        self,
        task: Task,
        settings: TrainerSettings,
        data: TaskData,
        make_editor: Callable[[nn.Module], HostEditor],
        halted: Callable[[], bool] = never,
    ) -> None:
        host = build_host(task, settings.run_seed, settings.device)
        super().__init__(task, settings, host, make_editor(host))
        self._data, self._make_editor, self._halted = data, make_editor, halted
        self._data_state = data.made_with
        self._sample_loss: Loss = sample_loss(task)
        self._fault_point = f"{settings.role}.step"
        self._round: int | None = None
        """Fence at which the present round ends; only for fault points. None before the first round."""
        self._unkept: Unkept | None = None
        """Finds changes of state that no checkpoint stores. None until `watch` is called."""

    def watch(self, changing: Changing) -> None:
        """Refuse at every later fence a change of state that no checkpoint stores. Call it before the first step.

        Args:
            changing: Attributes that the survey's steps changed; changes of these are allowed.
        """
        self._unkept = Unkept(self._task, self._data, self, changing)

    # -- training ------------------------------------------------------------------------------------------------

    def run_round(self, fence: int, last_step: int) -> TrainingState:
        """Train until `last_step` steps of the run are done, where fence `fence` lies, and return the measured values.

        Raises:
            DivergenceUnrecoverable: a loss or gradient was not finite.
            StateNotKept: state that no checkpoint stores changed for the first time.
            EmergencyStop: an emergency stops the run.
        """
        faults.point("tolaria.round", round=fence, step=self.step)
        self._round = fence
        if self._unkept is not None:
            self._unkept.begin_round()
        self._set_mode(training=True)
        losses: list[float] = []
        norms: list[float] = []
        while self.step < last_step:
            loss, norm = self._one_step()
            losses.append(loss)
            norms.append(norm)
        mean = sum(losses) / len(losses)
        best = self._best_round
        self._best_round = mean if best is None else min(mean, best)
        self.fence = fence
        check_process(self._settings.role)
        if self._unkept is not None:
            self._unkept.check(fence)
        return self._state(fence, mean, tuple(losses), max(norms), best)

    def first_step_at(self) -> float | None:
        """Return the Unix time at the end of the first step since construction or restore. None before that step."""
        return self._first_step_at

    def untrained(self) -> TrainingState:
        """Return the training state at fence 0, without measured values."""
        return self._state(0, None, (), None, None)

    def train_to(self, step: int) -> tuple[float, ...]:
        """Train until `step` steps of the run are done. Returns the loss of each step. Ends at no fence."""
        self._set_mode(training=True)
        losses = []
        while self.step < step:
            losses.append(self._one_step()[0])
        check_process(self._settings.role)
        return tuple(losses)

    def check_emergency(self) -> None:
        """Return unless an emergency stops the run.

        Raises:
            EmergencyStop: an emergency has stopped the run.
        """
        if self._halted():
            raise EmergencyStop("", "", self.step)

    def _one_step(self) -> tuple[float, float]:
        self.check_emergency()
        self._saver.check()
        faults.point(self._fault_point, round=self._round, step=self.step)
        if self.step % self._settings.trace_every == 0:
            with span("esper step", role=self._settings.role, step=self.step):
                return self._update()
        try:
            return self._update()
        except Exception as error:
            with span("esper step", role=self._settings.role, step=self.step):  # a failed step always gets a span
                raise error

    def _update(self) -> tuple[float, float]:
        """Take one optimizer step. Returns the loss and the global gradient norm before clipping."""
        inputs, targets = self._load(self._next_batch())
        self._editor.set_alphas(self.step)
        audited = self._audit_is_due()
        self._editor.watch(audited)
        loss = batch_loss(self._task.loss, self._forward(inputs), targets)
        if audited:
            self._audit()
        with their_code("task.model", "the backward pass"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        parameters = self._trained_parameters()
        norm = global_norm([p.grad for p in parameters if p.grad is not None])
        values = loss.item(), norm.item()
        check_finite(self.step, *values)
        if self._settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._settings.clip_norm, norm)
        with their_code("task.optimizer", "optimizer.step"):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for optimizer in self._seed_optimizers.values():
            optimizer.step(self.step)
            optimizer.optimizer.zero_grad(set_to_none=True)
        if self._scheduler is not None:
            with their_code("task.scheduler", "scheduler.step"):
                self._scheduler.step()
        self.step += 1
        if self._first_step_at is None:
            self._first_step_at = time.time()
        beat()
        return values

    def _audit_is_due(self) -> bool:
        if not self._isolated.keys() <= self._leaks.keys():
            return True  # an isolated seed was never audited
        return any((self.step - start) % self._settings.audit_every == 0 for start in self._isolated.values())

    def _load(self, batch: Any) -> tuple[Any, Any]:
        inputs, targets = split_pair(batch)
        return to_device(inputs, self._settings.device), to_device(targets, self._settings.device)

    def _forward(self, inputs: Any) -> Any:
        return call_model(self._task, self.host, inputs)

    def _audit(self) -> None:
        """Record which seeds reach host parameters. The gate at the next fence culls them; the step continues."""
        seen = self._editor.watched()
        found = self._audited()
        for seed_id, leaves in found.items():
            severe("isolation_violated", Severity.CRITICAL, seed_id=seed_id, leaves=list(leaves))
        self._leaks = {**dict.fromkeys(seen, ()), **self._leaks, **found}

    def _audited(self) -> dict[str, tuple[str, ...]]:
        """Audit every isolated seed of the last forward pass.

        Returns:
            Seed id -> host parameters that its gradient reaches, only for seeds that violate their isolation.
        """
        found: dict[str, tuple[str, ...]] = {}
        while True:
            try:
                self._editor.audit()
            except IsolationViolation as violation:  # the next call continues with the seeds after this one
                found[violation.seed_id] = violation.leaves
            else:
                return found

    # -- measuring -----------------------------------------------------------------------------------------------

    def sample_losses(self, shard: str, fence: int) -> SampleLosses:
        """Return the share of each sample in the loss of a fence's slice of a shard. Their mean is that loss."""
        part: Slice = self._data.slice(shard, fence)
        with self._evaluating():
            where = f"the samples of task.{shard} at fence {fence}"
            batches = self._outputs_of(self._data.batches_of(part), len(part.indices), where)
            losses = [losses_of(self._task, self._sample_loss, seen) for seen in batches]
        shares = Weighted.joined(losses).shares()
        return SampleLosses(shard=shard, fence=fence, losses=tuple(shares.tolist()), groups=part.groups)

    def shard_means(self, shard: str) -> dict[str, float]:
        """Return the task's loss over a whole shard, as "loss", and each of the task's metrics over it, by name."""
        with self._evaluating():
            batches = self._outputs_of(self._data.whole(shard), len(self._data.shards[shard]), f"task.{shard}")
            return means_over(batches, self._task, self._sample_loss)

    def try_shards(self) -> None:
        """Measure a few batches of every shard, so that a faulty loss or metric is refused before training.

        Raises:
            TaskError: the sample losses or a metric have a wrong shape, type or mean; see `check_measures`.
        """
        for name, shard in self._data.shards.items():
            if not len(shard):
                continue
            with self._evaluating():
                some = [self._look(label, size, batch) for label, size, batch in self._data.tried(name)]
                check_measures(self._task, self._sample_loss, name, some, len(shard))

    def loss_depends_on_batch(self) -> bool | None:
        """Return whether the loss of a sample depends on the other samples of its batch; see `depends_on_batch`."""
        if not len(self._data.shards["valid"]):
            return None
        with self._evaluating():
            return depends_on_batch(self._sample_loss, self._look(*next(self._data.tried("valid"))))

    def look_evaluating(self, batch: Any, samples: int) -> Seen:
        """Return the network's outputs for a batch in evaluation mode. The host's state is restored afterwards."""
        beat()
        with self._evaluating():
            return self._look("a batch", samples, batch)

    def glance(self, step: int) -> Tensor:
        """Run one forward pass in training mode on a training step's batch. Returns its loss.

        The host's state is restored afterwards.
        """
        beat()
        with torch.no_grad(), self._state_kept():
            inputs, targets = self._load(self._data.batch(step))
            return batch_loss(self._task.loss, self._forward(inputs), targets)

    def glance_evaluating(self, step: int) -> Any:  # Any: the return value of `task.sample_loss`
        """Run one forward pass in evaluation mode on a training step's batch, with all metrics and sample losses.

        Returns:
            The return value of `task.sample_loss`.
        """
        beat()
        with self._evaluating():
            seen = self._look(f"the batch of step {step}", self._data.batch_size, self._data.batch(step))
            for name, metric in self._task.metrics.items():
                Metric(name, metric).add(seen)
            with their_code("task.sample_loss", "the losses of samples"):
                return self._sample_loss(seen.output, seen.target)

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """Return the evidence on seeds and layers of the live host at a fence, for the policy.

        The counts of seeds start again with this call: see `HostEditor.observations`.

        Args:
            stages: Seed id -> stage, as recorded now.
        """
        seeds = tuple(
            seen.model_copy(
                update={"stage": stages.get(seen.seed_id), "isolation_leaks": self._leaks.get(seen.seed_id)}
            )
            for seen in self._editor.observations()
        )
        return HostObservation(fence=fence, registered_layers=tuple(sorted(self._layers())), seeds=seeds)

    def _layers(self) -> frozenset[str]:
        """Return the module paths of the host at this moment. The model's code may have added or deleted modules."""
        return frozenset(name for name, _ in self.host.named_modules(remove_duplicate=False) if name)

    @torch.no_grad()
    def activation(self, slot: str) -> Tensor:
        """Return the slot's output, seeds included, on the next training batch that calls it, in training mode.

        The host's state is restored afterwards.

        Raises:
            TaskError: `MOST_SKIPPED` batches in a row skipped the slot.
        """
        found: list[Tensor] = []
        step = self.step
        handle = self.host.get_submodule(slot).register_forward_hook(
            lambda _module, _args, output: found.append(output.clone())  # a later layer may write into it
        )
        try:
            with self._state_kept():
                while not found and step < self.step + MOST_SKIPPED:
                    inputs, _ = self._load(self._data.batch(step))
                    self._forward(inputs)
                    step += 1
        finally:
            handle.remove()
        if not found:
            raise not_called(slot, self.step, MOST_SKIPPED)
        return found[0]

    def probe_gradients(self, seed_id: str, batches: int) -> GradientProbe:
        """Measure a seed's gradients on the next `batches` training batches that call its slot, without an update.

        Gradients are deleted and the host's state is restored afterwards.

        Raises:
            TaskError: too many batches skipped the slot; see `MOST_SKIPPED`.
        """
        norms, nonfinite = list[float](), 0
        reachable = set[str]()
        slot = next(plan.slot for plan in self._editor.topology() if plan.seed_id == seed_id)
        with self._state_kept(), calls_of(self.host.get_submodule(slot)) as calls:
            step = self.step
            while len(norms) < batches:
                if step >= self.step + batches + MOST_SKIPPED:
                    raise not_called(slot, self.step, MOST_SKIPPED)
                calls.clear()
                inputs, targets = self._load(self._data.batch(step))
                step += 1
                self._editor.watch(True)
                loss = batch_loss(self._task.loss, self._forward(inputs), targets)
                if not calls:
                    continue
                for found, leaves in self._audited().items():  # evidence for gate G1, which refuses the seed
                    reachable |= set(leaves) if found == seed_id else set()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                grads = [p.grad for p in self._editor.parameters_of(seed_id) if p.grad is not None]
                nonfinite += sum(int((~g.isfinite()).sum()) for g in grads)
                norms.append(float(torch.nn.utils.get_total_norm(grads)))
                for parameter in self._parameters():
                    parameter.grad = None
        return GradientProbe(
            batches=len(norms),
            nonfinite=nonfinite,
            norm=max(norms),
            reachable_host_parameters=tuple(sorted(reachable)),
        )

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """Restore after the block all that forward passes change: parameters, buffers, and extra states of modules.

        Inside, stateful data sets continue from their state in training; that state itself is not changed.
        """
        seeds = self._editor.tensors().values()
        with tensors_kept(self.host, seeds), self._data.at(self._data_state), extra_states_kept(self.host):
            yield

    def _next_batch(self) -> Any:  # Any: the type that the task's collate function returns
        """Load the batch of the present step. The new state of stateful data sets is stored for the step after it."""
        with self._data.at(self._data_state):
            batch = self._data.batch(self.step)
            self._data_state = self._data.state()
        return batch

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Run the block in evaluation mode and without gradients. The host's state is restored afterwards."""
        self._set_mode(training=False)
        try:
            with torch.no_grad(), self._state_kept():
                yield
        finally:
            self._set_mode(training=True)
        check_process(self._settings.role)

    def _outputs_of(self, batches: Iterator[Any], samples: int, where: str) -> Iterator[Seen]:
        """Yield the network's outputs for each batch, in the present mode.

        Args:
            samples: Number of samples in all batches together.
            where: Origin of the batches, for messages.
        """
        for place, batch in enumerate(batches):
            beat()
            size = min(EVALUATION_BATCH, samples - place * EVALUATION_BATCH)
            yield self._look(batch_name(place, where), size, batch)

    def _look(self, name: str, samples: int, batch: Any) -> Seen:
        inputs, targets = self._load(batch)
        return Seen(name, samples, self._forward(inputs), targets)

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
        )

    # -- changing the host at a fence ----------------------------------------------------------------------------

    def apply(self, plan: HostPlan, weights: Weights) -> GraftReceipt:
        """Apply a plan. If the same plan was applied before, return its stored receipt without any effect.

        Raises:
            DependencyViolationError: the plan fails `check_plan`, or a different plan was applied under the same
                command id and seed id. The host is not changed.
        """
        faults.point("tolaria.apply")
        with span("trainer apply", role="tolaria", kind=type(plan).__name__, seed_id=plan.seed_id):
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
            self._change(plan, weights)
            receipt = GraftReceipt(
                command_id=plan.command_id,
                seed_id=plan.seed_id,
                generation=plan.generation,
                step=self.step,
                parameters=self.parameter_count(),
            )
            self._receipts[key] = (plan, receipt)
            return receipt

    def _change(self, plan: HostPlan, weights: Weights) -> None:
        if isinstance(plan, GraftPlan):
            self.graft(plan, weights)
        elif isinstance(plan, JoinPlan):
            self._editor.join(plan.seed_id)
            self._isolated.pop(plan.seed_id, None)
        else:
            self.remove(plan.seed_id)
            self._best_round = None  # it was measured on the host with the seed

    def another(self) -> Trainer:
        """Build a new host from the task and load this host's snapshot, as a restore does.

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
            Seed id -> remains of the seed in this host, and whether the slot's output (bit for bit), the
            `requires_grad` flags and the names are equal.
        """
        fresh = Trainer(self._task, self._settings, self._data, self._make_editor)
        bare_hooks = {slot: len(fresh.host.get_submodule(slot)._forward_hooks) for slot in seeds.values()}
        flags = [p.requires_grad for p in self.host.parameters()] == [p.requires_grad for p in fresh.host.parameters()]
        names = _names(self.host) == _names(fresh.host)
        if names:  # with other names it has other tensors and cannot load the snapshot
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


def not_called(slot: str, step: int, steps: int) -> TaskError:
    """Return the error for a slot that the forwards of `steps` training batches, from step `step` on, skipped."""
    mend = "a slot may be skipped by chance, but not always; name a module around what is skipped"
    return TaskError(f"slot {slot}", f"not called by the forward of {steps} training batches from step {step} on", mend)


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[None]]:
    """Yield a list that gets one item for each call of the module."""
    calls: list[None] = []

    def count(_module: nn.Module, _args: object, _output: object) -> None:
        calls.append(None)

    handle = module.register_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def call_model(task: Task, model: nn.Module, inputs: Any) -> Any:
    """Return the model's output for a batch of inputs, through `task.input_output` if the task has it."""
    with their_code("task.model", "a forward in training mode" if model.training else "a forward in evaluation mode"):
        return model(inputs) if task.input_output is None else task.input_output(model, inputs)


def build_host(task: Task, run_seed: int, device: str) -> nn.Module:
    """Build the task's model on the device, in training mode. Its weights depend on the run seed only.

    Submodules that the factory froze stay in evaluation mode; see `esper.tolaria.modes`.

    Raises:
        TaskError: the factory did not return a module, its state dict holds a value that is not a tensor, or
            `check_modules` refuses it.
    """
    seed_process(run_seed, "model")
    with their_code("task.model", "the model factory"):
        model = task.model()
    if not isinstance(model, nn.Module):
        raise TaskError("task.model", type(model).__name__, "it must return a torch.nn.Module")
    check_modules(model)
    own = {f"{path}._extra_state".lstrip(".") for path in extra_states(model)}
    state = state_of("task.model", model)
    extra = [name for name, value in state.items() if not isinstance(value, Tensor) and name not in own]
    if extra:
        mend = "state that is not a tensor cannot be stored; make it a buffer, or return it from get_extra_state"
        raise TaskError("task.model", extra[0], mend)
    model = model.to(device)
    begin_training(model)
    return model


def _names(host: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Return the names of modules, tensors and state dict entries. Non-persistent buffers are only in the second."""
    tensors = [*dict(host.named_parameters()), *dict(host.named_buffers())]
    return [name for name, _ in host.named_modules()], tensors, list(state_of("task.model", host))
