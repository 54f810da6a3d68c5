"""Attaches seeds to a host by forward hooks, and removes them completely. The registry's plans determine which seeds
are attached and removed.

A slot without seeds has no hook. The hook of a slot calls a `SlotStack` with the seeds of the slot. The stack is not
registered in the host, so the host's modules, names and state dict do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from esper.errors import DependencyViolationError, IsolationViolation, SeedBuildFailed
from esper.ground.slot_output import part_of, with_part
from esper.kasmina.blueprints.catalogue import BlueprintRegistry
from esper.kasmina.blueprints.fallbacks import Told, heard
from esper.kasmina.blueprints.precision import as_slot, dtype_of
from esper.kasmina.blueprints.seed_weights import load_weights
from esper.kasmina.host.alpha_record import AlphaRecord
from esper.kasmina.host.attached import PREFIX, Seed, attach
from esper.kasmina.host.blending import blend_alpha, blend_of, check_fits, target_alpha
from esper.kasmina.host.call_record import CallRecord, is_recomputing
from esper.kasmina.host.code_path import COMPILED, asked_path
from esper.kasmina.host.formulas import weight_of
from esper.kasmina.host.isolation import reachable_parameters, record_of, sharing_memory, strange_parameters
from esper.kasmina.host.prewarm import CHANGES_INPUT, prewarm
from esper.leyline.evidence import SeedObservation
from esper.leyline.reports import Amendment, GraftPlan, Weights
from esper.leyline.slots import SlotSpec
from esper.leyline.state import BlendReport
from esper.user_code.attributes import Held, different, held_by
from esper.user_code.their_code import their_code


@dataclass
class LastCall:
    """The data of a seed's last call.

    It is not a module, because setting an attribute of a module takes ten times as long.
    """

    branch: Tensor | None = None
    """The seed's output in a watched call. None: no call was watched."""
    cut: Node | None = None
    """Node of the autograd graph for the seed's input in a watched call. None: the input was detached."""
    changed: tuple[str, ...] | None = None
    """Names of everything outside the seed that a watched call changed. None: no call was watched."""
    shape: tuple[int, ...] | None = None
    """Shape of the output for one sample. None: the seed was not called since the last observation."""


class GraftedSeed(nn.Module):
    """A seed at its slot, with the blend of its plan. While the seed is isolated, its input is detached from the graph.

    Alpha and the vector of CHANNEL are buffers, so that torch does not compile a host again when their values change.
    """

    alpha: Tensor
    """The effective alpha of the present step, rank 0."""
    channels: Tensor | None
    """The vector of CHANNEL, broadcastable to one sample. None for other modes."""

    def __init__(
        self,
        module: nn.Module,
        plan: GraftPlan,
        spec: SlotSpec,
        asked_path: str,
        record: Callable[[GraftPlan], Held],
    ) -> None:
        """Make the module without attaching the seed.

        Args:
            record: Function that returns the digests of everything that this seed must not change.
        """
        super().__init__()
        self.record = record
        self.module = module
        self.blend = blend_of(plan.blend)
        self.plan = plan
        self.asked_path = asked_path
        self.watched = False
        self.last = LastCall()
        self.register_buffer("alpha", torch.zeros((), dtype=dtype_of(spec), device=plan.asked_device))
        self.register_buffer("channels", self.blend.vector(plan.blend, spec))
        self.calls = CallRecord((spec.dtype, str(self.alpha.device), asked_path), self.alpha.device)
        """The calls since the last observation."""
        self.told = Told(module)
        self.alphas = AlphaRecord()
        """The alphas that were set since the last report."""

    def forward(self, host: Tensor) -> Tensor:
        """Blend the seed into the slot's output, [B, ...]; same shape, dtype and device.

        Raises:
            SeedBuildFailed: the seed's own forward raised, changed its input, or returned an output that does not fit
                the slot.
        """
        before = self.record(self.plan) if self.watched else None
        given = self._input(host)
        try:
            with their_code(f"blueprint {self.plan.blueprint_id}", f"forward at {self.plan.slot}"):
                correction = as_slot(self._run(given), host)
                check_fits(host, correction)
        except Exception as error:  # otherwise it would be reported as an error of the host
            raise SeedBuildFailed(self.plan.blueprint_id, self.plan.slot, "forward") from error
        if not is_recomputing():
            if not (self.watched and self.asked_path == COMPILED):  # else the call was made only for the audit
                self.calls.add(self.module, correction)
            self.last.shape = tuple(correction.shape[1:])
            if before is not None:
                self._audit_call(before, host, given, correction)
        return self.blend.formula(host, correction, weight_of(self.alpha, self.channels, host))

    def _input(self, host: Tensor) -> Tensor:
        """Return the input of the seed. In a watched call the input is a copy, so that the call cannot change the
        host's tensor.

        An input without a gradient is made contiguous, because the backward pass of GroupNorm crashes the process if
        its input has the memory format `channels_last` and needs no gradient.
        """
        given = host.detach() if self.plan.isolated else host
        if torch.is_grad_enabled() and not given.requires_grad:
            given = given.contiguous()
        return given.clone() if self.watched else given

    def _run(self, given: Tensor) -> Any:  # Any: a wrong blueprint may return anything
        """Call the seed. Raises: ValueError: the call changed its input in place."""
        if torch.compiler.is_compiling():
            return self.module(given)
        if self.watched or given.is_inference():
            return heard(self.module, given)
        version = given._version
        output = heard(self.module, given)
        if given._version != version:
            raise ValueError(CHANGES_INPUT)
        return output

    def _audit_call(self, before: Held, host: Tensor, given: Tensor, correction: Tensor) -> None:
        """Record everything that a watched call changed, and the input and the output of the seed."""
        changed = different(before, self.record(self.plan))
        if held_by([given]) != held_by([host]):
            changed.append(f"output of {self.plan.slot}")
        self.last.changed = tuple(changed)
        self.last.branch, self.last.cut = correction, None if self.plan.isolated else given.grad_fn

    def observe(self) -> SeedObservation:
        """Return the observation since the last call of `observe`, and start a new observation.

        Alpha and the target of alpha are rounded to the buffer's dtype, so that they can be compared. If calls differed
        in dtype, device or path, all values are listed. The devices of the seed's tensors are listed, too.
        """
        target = torch.tensor(target_alpha(self.plan.blend, self.plan.confidence).effective, dtype=self.alpha.dtype)
        counts = self.calls.take()
        dtypes, devices, paths = zip(*counts, strict=True) if counts else ((), (), ())
        lying = [str(tensor.device) for tensor in (*self.module.parameters(), *self.module.buffers())]
        found = SeedObservation(
            seed_id=self.plan.seed_id,
            slot=self.plan.slot,
            alpha=float(self.alpha),
            alpha_target=float(target),
            calls=sum(counts.values()),
            output_shape=self.last.shape,
            output_dtype=_all_of(dtypes),
            device=_all_of((*devices, *lying)) if devices else None,
            path=_all_of(paths),
            asked_dtype=str(self.alpha.dtype),
            asked_device=self.plan.asked_device,
            asked_path=self.asked_path,
            isolated=self.plan.isolated,
            told=self.told.take(),
            parameter_bytes=sum(p.numel() * p.element_size() for p in self.module.parameters()),
        )
        self.last.shape = None
        return found


def _all_of(values: Sequence[str]) -> str | None:
    return " and ".join(dict.fromkeys(values)) or None


def _finished(seed: GraftedSeed) -> Seed:
    return Seed(seed.module, seed.alpha, seed.blend.formula, seed.channels)


def _prefix(plan: GraftPlan) -> str:
    """Return the first part of the names of a seed's tensors."""
    return f"{PREFIX}.{plan.slot}.{plan.ordinal}."


def _violation(plan: GraftPlan, leaves: Iterable[str]) -> IsolationViolation:
    return IsolationViolation(plan.seed_id, sorted(leaves), plan.blueprint_id, plan.slot)


class SlotStack(nn.Module):
    """The seeds of one slot, in graft order, with the slot's hook.

    Each seed acts on the output of the seed before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seeds = nn.ModuleList()

    def forward(self, output: Tensor) -> Tensor:
        """Return the slot's output, [B, ...], with every seed blended in."""
        for seed in self.seeds:
            output = seed(output)
        return output

    def hook(self, module: nn.Module, args: tuple[object, ...], output: Any) -> Any:  # Any: as in `slot_output`
        """Return the slot's output with the seeds blended in. This is the forward hook of the slot."""
        del module, args
        return with_part(output, self(part_of(output)))


class SeedEditor:
    """The `HostEditor` of one host. Its seeds are in the order of their grafts."""

    def __init__(
        self,
        host: nn.Module,
        specs: Mapping[str, SlotSpec],
        blueprints: BlueprintRegistry,
        backend: str | None = None,
    ) -> None:
        """Make the editor of a host without seeds.

        Args:
            backend: The backend of `torch.compile` for the host. None: the host is not compiled.
        """
        self._host, self._specs, self._blueprints, self._backend = host, specs, blueprints, backend
        self._stacks: dict[str, tuple[SlotStack, RemovableHandle]] = {}
        self._seeds: dict[str, GraftedSeed] = {}
        self._batch: object = None
        """Input of the watched forward pass. None: no forward pass is watched."""

    def graft(self, plan: GraftPlan, weights: Weights) -> None:
        """Attach a seed, and load its weights: the value of `weights` for the digest in the plan.

        Raises:
            DependencyViolationError: the slot is unknown, the seed is grafted already, or its weights are not in
                `weights`; the host is unchanged.
            SeedBuildFailed: the seed could not be built, loaded with its weights, or prewarmed; the host is unchanged.
            IsolationViolation: a tensor of the seed shares memory with the host or with another seed, or the seed
                changed the host while it was built and prewarmed. The seed is not attached.
        """
        if plan.slot not in self._specs:
            raise DependencyViolationError(f"seed {plan.seed_id}", "slot not known", plan.slot)
        if plan.seed_id in self._seeds:
            raise DependencyViolationError(f"seed {plan.seed_id}", "already grafted", plan.slot)
        if plan.weights_digest not in weights:
            raise DependencyViolationError(f"seed {plan.seed_id}", "weights not given", plan.weights_digest)
        spec = self._specs[plan.slot]
        before = self.record(plan)
        module = self._blueprints.get(plan.blueprint_id).build(spec, seed_key=0)
        own = [*module.parameters(), *module.buffers()]
        if shared := sharing_memory(own, {**self.tensors(), **self._host_tensors()}):
            raise _violation(plan, shared)  # loading the weights of the seed would overwrite the host
        try:
            load_weights(module, weights[plan.weights_digest])
        except RuntimeError as error:
            raise SeedBuildFailed(plan.blueprint_id, plan.slot, "load weights") from error
        path = asked_path(self._host, plan.slot)
        prewarm(module, spec, plan.blueprint_id, self._backend if path == COMPILED else None)
        if changed := different(before, self.record(plan)):
            raise _violation(plan, changed)
        seed = GraftedSeed(module, plan, spec, path, self.record)
        seed.train(self._host.training)
        if plan.slot not in self._stacks:
            stack = SlotStack()
            handle = self._host.get_submodule(plan.slot).register_forward_hook(stack.hook)
            self._stacks[plan.slot] = stack, handle
        self._stacks[plan.slot][0].seeds.append(seed)
        self._seeds[plan.seed_id] = seed

    def amend(self, change: Amendment) -> None:
        """Change the plan of a seed. If the change ends the seed's isolation, the isolation ends with the next forward.

        A changed confidence applies from the next `set_alphas` on.
        """
        seed = self._get(change.seed_id)
        seed.plan = change.amended(seed.plan)

    def remove(self, seed_id: str) -> None:
        """Remove a seed. If it was the last seed of its slot, remove the slot's hook, too."""
        seed = self._get(seed_id)
        del self._seeds[seed_id]
        stack, handle = self._stacks[seed.plan.slot]
        stack.seeds = nn.ModuleList(kept for kept in stack.seeds if kept is not seed)
        if not len(stack.seeds):
            handle.remove()
            del self._stacks[seed.plan.slot]

    def release(self) -> None:
        """Register every seed in the host as an ordinary module, with the same tensors.

        Do not use the editor afterwards.
        """
        for _, handle in self._stacks.values():
            handle.remove()
        grafted = self._seeds.values()
        attach(self._host, [(seed.plan.slot, seed.plan.ordinal, _finished(seed)) for seed in grafted])
        self._stacks, self._seeds = {}, {}

    def set_alphas(self, step: int) -> None:
        """Set every seed's alpha for optimizer step `step`."""
        for seed in self._seeds.values():
            plan = seed.plan
            alpha = blend_alpha(step, plan.start_step, plan.blend, plan.confidence)
            seed.alpha.fill_(alpha.effective)
            seed.alphas.add(step, alpha)

    def blend_reports(self) -> tuple[BlendReport, ...]:
        """Return a summary of the alphas that were set for each seed since the last call."""
        reports = [seed.alphas.take(seed.plan) for seed in self._seeds.values()]
        return tuple(report for report in reports if report is not None)

    def topology(self) -> tuple[GraftPlan, ...]:
        """Return the plans of the present seeds, in graft order, with later changes (`amend`) applied."""
        return tuple(seed.plan for seed in self._seeds.values())

    def parameters_of(self, seed_id: str) -> Sequence[nn.Parameter]:
        """Return a seed's trainable parameters, in name order."""
        named = sorted(self._get(seed_id).module.named_parameters())
        return [parameter for _, parameter in named if parameter.requires_grad]

    def tensors(self) -> Mapping[str, Tensor]:
        """Return all tensors of all seeds.

        A name consists of the slot, the ordinal, and the name in the seed. The names do not depend on the run id.
        """
        found: dict[str, Tensor] = {}
        for seed in self._seeds.values():
            prefix = _prefix(seed.plan)
            found |= {prefix + name: p for name, p in seed.named_parameters()}
            found |= {prefix + name: b for name, b in seed.named_buffers()}
        return found

    def blend_tensors(self, step: int) -> Mapping[str, Tensor]:
        """Return the alpha of each seed at an optimizer step, and its vector if it has one. The plan of the seed
        determines both. The names are those in `tensors`.
        """
        found: dict[str, Tensor] = {}
        for seed in self._seeds.values():
            plan, prefix = seed.plan, _prefix(seed.plan)
            alpha = blend_alpha(step, plan.start_step, plan.blend, plan.confidence).effective
            found[f"{prefix}alpha"] = torch.full_like(seed.alpha, alpha)
            vector = seed.blend.vector(plan.blend, self._specs[plan.slot])
            found |= {f"{prefix}channels": vector} if vector is not None else {}
        return found

    def modules(self) -> Mapping[str, nn.Module]:
        """Return the module of each seed, by the first part of the names of its tensors in `tensors`."""
        return {f"{_prefix(seed.plan)}module": seed.module for seed in self._seeds.values()}

    def set_training(self, training: bool) -> None:
        """Put every seed into training or evaluation mode."""
        for seed in self._seeds.values():
            seed.train(training)

    def watch(self, on: bool, batch: object = None, leave_out: Collection[str] = ()) -> None:
        """Start or stop recording the changes that seeds make; `audit` uses the record.

        Args:
            batch: Input of the watched forward pass. The seeds must not change it.
            leave_out: Ids of seeds that are not watched.
        """
        self._batch = batch
        for seed_id, seed in self._seeds.items():
            seed.watched = on and seed_id not in leave_out

    def watched(self) -> tuple[str, ...]:
        """Return the ids of the seeds with a watched call. A seed whose slot was skipped is not among them."""
        return tuple(seed_id for seed_id, seed in self._seeds.items() if seed.last.changed is not None)

    def audit(self) -> None:
        """Check that no seed changed the host or another seed in its last watched call, and that no gradient reached
        them.

        The records of the calls are deleted.

        Raises:
            IsolationViolation: the call changed something outside the seed; a tensor of the seed shares the memory of a
                foreign tensor; or its gradient reaches a foreign parameter. If a seed is not
                isolated, it is no error that its gradient reaches parameters through the seed's input.
        """
        for seed in self._seeds.values():
            branch, cut, changed = seed.last.branch, seed.last.cut, seed.last.changed
            seed.last.branch = seed.last.cut = seed.last.changed = None
            if branch is None or changed is None:
                continue
            foreign, own = self._foreign_to(seed.plan), [*seed.parameters(), *seed.buffers()]
            parameters = {name: tensor for name, tensor in foreign.items() if isinstance(tensor, nn.Parameter)}
            reached = reachable_parameters(branch, parameters, cut), strange_parameters(branch, own, foreign, cut)
            found = {*changed, *sharing_memory(own, foreign), *reached[0], *reached[1]}
            if found:
                raise _violation(seed.plan, found)

    def record(self, plan: GraftPlan | None = None) -> Held:
        """Return the digests of everything that the seed of `plan` must not change; see `record_of`.

        None: no seed may change it.
        """
        return record_of(self._host, self._seeds_beside(plan), self._batch)

    def _host_tensors(self) -> dict[str, Tensor]:
        return {**dict(self._host.named_parameters()), **dict(self._host.named_buffers())}

    def _foreign_to(self, plan: GraftPlan) -> dict[str, Tensor]:
        """Return the tensors of the host and of the other seeds.

        If the seed shares a tensor with them, this tensor is included.
        """
        return self._seeds_beside(plan) | self._host_tensors()

    def _seeds_beside(self, plan: GraftPlan | None) -> dict[str, Tensor]:
        own = _prefix(plan) if plan is not None else None
        return {name: tensor for name, tensor in self.tensors().items() if own is None or not name.startswith(own)}

    def calls(self, seed_id: str) -> int:
        """Return the number of a seed's calls since the last `observations`. Recomputed calls do not count.

        Watched calls count only if the host is not compiled at the seed's slot.
        """
        return self._get(seed_id).calls.counts().total()

    def observations(self) -> tuple[SeedObservation, ...]:
        """Return the observation of each seed since the last call, and start new observations."""
        return tuple(seed.observe() for seed in self._seeds.values())

    def _get(self, seed_id: str) -> GraftedSeed:
        if seed_id not in self._seeds:
            raise DependencyViolationError(
                f"seed {seed_id}", "not in this host", "it was never grafted, or was removed"
            )
        return self._seeds[seed_id]
