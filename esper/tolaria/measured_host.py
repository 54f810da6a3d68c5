"""One host and its data: measures losses, gradients and the evidence on seeds.

Every measurement restores the host's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from esper.errors import IsolationViolation
from esper.ground.heartbeat import beat
from esper.ground.slot_output import part_of
from esper.ground.temporary_rng import temporary_rng
from esper.ground.tensors_kept import tensors_kept
from esper.leyline.evidence import GradientProbe, HostObservation, SampleLosses
from esper.leyline.host_ports import HostEditor
from esper.leyline.stages import Stage
from esper.task import Loss, Task
from esper.tolaria.companions import Dependence, depends_on_batch
from esper.tolaria.compiling import compiling, uncompiled
from esper.tolaria.data import EVALUATION_BATCH, Slice, TaskData, batch_name, split_pair, to_device
from esper.tolaria.host_building import call_model
from esper.tolaria.host_state import GrownHost, TrainerSettings
from esper.tolaria.loss import batch_loss, sample_loss
from esper.tolaria.measuring import check_measures, losses_of, means_over
from esper.tolaria.slot_calls import MOST_SKIPPED, not_called
from esper.tolaria.task_metrics import Metric, Seen
from esper.tolaria.weighing import Weighted
from esper.user_code.attributes import different, digest_of, path_in_words
from esper.user_code.extra_state import extra_states_kept
from esper.user_code.process_state import check_process
from esper.user_code.their_code import their_code

T = TypeVar("T")

ALL_BYTES = 2**60
"""A limit that is never reached, so that every tensor is read whole."""


class MeasuredHost(GrownHost):
    """A grown host and the task's data. It measures, and takes no optimizer step."""

    def __init__(
        self, task: Task, settings: TrainerSettings, host: nn.Module, editor: HostEditor, data: TaskData
    ) -> None:
        super().__init__(task, settings, host, editor)
        self._data, self._device = data, torch.device(settings.device)
        self._data_state = data.made_with
        self._sample_loss: Loss = sample_loss(task)

    # -- forward passes ------------------------------------------------------------------------------------------

    def _load(self, batch: Any) -> tuple[Any, Any]:
        inputs, targets = split_pair(batch)
        return to_device(inputs, self._device), to_device(targets, self._device)

    def _forward(self, inputs: Any) -> Any:
        backend = self._settings.compile_backend
        if backend is None:
            return call_model(self._task, self.host, inputs)
        with compiling(backend):
            return call_model(self._task, self.host, inputs)

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """Restore after the block everything that forward passes change: parameters, buffers, and extra states of
        modules.

        In the block, stateful data sets continue from their state in training. Their state in training is not changed.
        """
        seeds = self._editor.tensors().values()
        with (
            tensors_kept(self.host, seeds),
            self._data.at(self._data_state),
            extra_states_kept(self.host, self._editor.modules()),
        ):
            yield

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

    # -- the task's loss and metrics -----------------------------------------------------------------------------

    def sample_losses(self, shard: str, fence: int, units: int | None = None) -> SampleLosses:
        """Return the share of each sample in the loss of a slice of a shard. The fence judges on this slice. The mean
        of the shares is the loss.

        Args:
            units: Number of samples, or of groups, in the slice. None: the number that a fence draws.
        """
        part: Slice = self._data.slice(shard, fence, units)
        with self._evaluating():
            where = f"the samples of task.{shard} at fence {fence}"
            batches = self._outputs_of(self._data.batches_of(part), len(part.indices), where)
            losses = [losses_of(self._task, self._sample_loss, seen) for seen in batches]
        shares = Weighted.joined(losses).shares()
        return SampleLosses(shard=shard, fence=fence, losses=tuple(shares.tolist()), groups=part.groups)

    def shard_means(self, shard: str, most: int | None = None) -> dict[str, float]:
        """Return the task's loss over a shard, as "loss", and the task's metrics over the shard, by name.

        Args:
            most: If the shard has more samples, only as many are measured, evenly spaced. None: all samples.
        """
        count = self._data.count(shard, most)
        with self._evaluating():
            batches = self._outputs_of(self._data.evenly(shard, count), count, f"task.{shard}")
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

    def loss_depends_on_batch(self) -> Dependence:
        """Return whether the loss of a sample depends on the other samples of its batch; see `depends_on_batch`."""
        if not len(self._data.shards["valid"]):
            return Dependence(None, "valid has no samples")
        with self._evaluating():
            return depends_on_batch(self._sample_loss, self._look(*next(self._data.tried("valid"))))

    def look_evaluating(self, batch: Any, samples: int) -> Seen:
        """Return the network's outputs for a batch in evaluation mode. The host's state is restored afterwards."""
        beat()
        with self._evaluating():
            return self._look("a batch", samples, batch)

    def glance(self, step: int) -> Tensor:
        """Run one forward pass in training mode on a training step's batch, and return the loss.

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

    # -- evidence on seeds ---------------------------------------------------------------------------------------

    def observe(self, fence: int, stages: Mapping[str, Stage]) -> HostObservation:
        """Return the evidence on seeds and layers of the live host at a fence, for the policy.

        This call sets the counts of seeds to 0; see `HostEditor.observations`.

        Args:
            stages: Seed id -> present stage of the seed. A fossilized seed is not audited any more.
        """
        final = {seed_id for seed_id, stage in stages.items() if stage is Stage.FOSSILIZED}
        self._judged = {seed_id: start for seed_id, start in self._judged.items() if seed_id not in final}
        seeds = tuple(
            seen.model_copy(
                update={"stage": stages.get(seen.seed_id), "isolation_leaks": self._leaks.get(seen.seed_id)}
            )
            for seen in self._editor.observations()
        )
        return HostObservation(fence=fence, registered_layers=tuple(sorted(self._layers())), seeds=seeds)

    def _layers(self) -> frozenset[str]:
        """Return the present module paths of the host. The model's code may have added or deleted modules."""
        return frozenset(name for name, _ in self.host.named_modules(remove_duplicate=False) if name)

    @torch.no_grad()
    def activation(self, slot: str) -> Tensor:
        """Return the slot's output, seeds included, in training mode, for the next training batch that calls the slot.

        The host's state is restored afterwards.

        Raises:
            TaskError: the host did not call the slot in `MOST_SKIPPED` consecutive batches.
        """
        found: list[Tensor] = []
        step = self.step
        handle = self.host.get_submodule(slot).register_forward_hook(
            lambda _module, _args, output: found.append(part_of(output).clone())  # a later layer may change it
        )
        try:
            with uncompiled(self.host), self._state_kept():  # a compiled forward ignores the new hook
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
        """Measure a seed's gradients on the next `batches` training batches that call its slot.

        No parameter is updated. Gradients are deleted and the host's state is restored afterwards.

        Raises:
            TaskError: too many batches did not call the slot; see `MOST_SKIPPED`.
        """
        norms, nonfinite = list[float](), 0
        slot = next(plan.slot for plan in self._editor.topology() if plan.seed_id == seed_id)
        with self._state_kept():
            step = self.step
            while len(norms) < batches:
                if step >= self.step + batches + MOST_SKIPPED:
                    raise not_called(slot, self.step, MOST_SKIPPED)
                calls = self._editor.calls(seed_id)
                inputs, targets = self._load(self._data.batch(step))
                step += 1
                with nullcontext() if self._compiled else self._watching(inputs):
                    loss = batch_loss(self._task.loss, self._forward(inputs), targets)
                if self._editor.calls(seed_id) == calls:
                    continue
                found = {} if self._compiled else self._audited()
                if seed_id in found:  # gate G1 refuses the seed; a backward pass might write into another host
                    return self._leaking(found[seed_id])
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                # an additional forward is after the backward pass, because it overwrites tensors that the pass needs
                found = self._audit_eagerly(inputs, self._audited) if self._compiled else self._audited()
                if seed_id in found:
                    return self._leaking(found[seed_id])
                grads = [p.grad for p in self._editor.parameters_of(seed_id) if p.grad is not None]
                nonfinite += sum(int((~g.isfinite()).sum()) for g in grads)
                norms.append(float(torch.nn.utils.get_total_norm(grads)))
                self._clear_gradients()
        return GradientProbe(
            batches=len(norms),
            nonfinite=nonfinite,
            norm=max(norms),
            reachable_host_parameters=(),
        )

    def _leaking(self, violation: IsolationViolation) -> GradientProbe:
        """Return the probe of a seed if the seed reached or changed the host. The gradients of the seed were not
        measured.
        """
        self._clear_gradients()
        return GradientProbe(batches=0, nonfinite=0, norm=0.0, reachable_host_parameters=violation.leaves)

    def _clear_gradients(self) -> None:
        for parameter in self._parameters():
            parameter.grad = None

    def _audit_eagerly(self, inputs: Any, audit: Callable[[], T]) -> T:
        """Make an audit after an additional forward that is not compiled and changes no state.

        A compiled forward is a single node of the autograd graph. Every parameter is reachable from this node, so an
        audit could not tell which parameters a seed reached.
        """
        with uncompiled(self.host), self._state_kept(), temporary_rng(self.step, self._devices()):
            with self._watching(inputs):
                self._forward(inputs)
            return audit()

    @contextmanager
    def _watching(self, inputs: Any) -> Iterator[None]:
        """In the block, a forward pass of `inputs` makes the records for `audit`. Outside of the block a forward pass
        records nothing and is faster.
        """
        settled = {plan.seed_id for plan in self._editor.topology()} - self._judged.keys()
        self._editor.watch(True, inputs, settled)
        try:
            yield
        finally:
            self._editor.watch(False)

    def _look_for_calls(self) -> None:
        """Check that the compiled forward calls the seeds that were grafted before the last step.

        A slot may be skipped by chance in some steps.

        Raises:
            TaskError: a seed was not called in the last step, nor in the forwards of the next `MOST_SKIPPED` batches.
        """
        for step in range(self.step, self.step + MOST_SKIPPED):
            self._uncalled = {seed_id for seed_id in self._uncalled if not self._editor.calls(seed_id)}
            if not self._uncalled:
                return
            with temporary_rng(step, self._devices()), self._state_kept():
                inputs, _ = self._load(self._data.batch(step))
                self._forward(inputs)  # with gradients on, because torch runs another compiled graph if they are off
        slots = [plan.slot for plan in self._editor.topology() if plan.seed_id in self._uncalled]
        raise not_called(slots[0], self.step - 1, MOST_SKIPPED)

    def _devices(self) -> set[torch.device]:
        return {parameter.device for parameter in self.host.parameters()}

    def held(self) -> Mapping[str, Any]:  # Any: a digest
        """Return the digests of everything in this host that a candidate must not change, by path; see
        `HostEditor.record`.
        """
        return self._editor.record()

    def changed_since(self, before: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of everything that has changed since `held` returned `before`."""
        return tuple(map(path_in_words, different(dict(before), dict(self.held()))))

    def tensor_digests(self) -> Mapping[str, object]:
        """Return the digests of all tensors and gradients of the host and its seeds, by name.

        The digest of a tensor covers its values, its identity, `requires_grad` and the number of its hooks.
        """
        tensors = self._all_tensors()
        found: dict[str, object] = {
            name: (digest_of(one, ALL_BYTES), id(one), one.requires_grad, len(one._backward_hooks or ()))
            for name, one in tensors.items()
        }
        gradients = {f"{name}.grad": one.grad for name, one in tensors.items()}
        return found | {name: digest_of(one, ALL_BYTES) for name, one in gradients.items() if one is not None}

    def _audited(self) -> dict[str, IsolationViolation]:
        """Audit every watched seed of the last forward pass.

        Returns:
            Seed id -> violation. Only seeds that violate their isolation are included.
        """
        found: dict[str, IsolationViolation] = {}
        while True:
            try:
                self._editor.audit()
            except IsolationViolation as violation:  # the next call continues with the seeds after this seed
                found[violation.seed_id] = violation
            else:
                return found
