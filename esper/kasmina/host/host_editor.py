"""Attaches seeds to a host by forward hooks, and removes them completely. The registry's plans determine which seeds
are attached and removed.

A slot without seeds has no hook. The hook of a slot calls a `SlotStack` with the seeds of the slot. The stack is not
registered in the host, so the host's modules, names and state dict do not change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.errors import DependencyViolationError, IsolationViolation, SeedBuildFailed, TaskError
from esper.ground.slot_output import part_of, with_part
from esper.kasmina.blueprints.catalogue import BlueprintRegistry
from esper.kasmina.blueprints.seed_weights import load_weights
from esper.kasmina.host.attached import PREFIX, Seed, attach
from esper.kasmina.host.blending import blend_alpha
from esper.kasmina.host.code_path import COMPILED, asked_path
from esper.kasmina.host.grafted_seed import GraftedSeed
from esper.kasmina.host.isolation import (
    Edge,
    reachable_parameters,
    record_of,
    sharing_memory,
    strange_parameters,
    tensors_of,
)
from esper.kasmina.host.padding_masks import padding_of, positional_names
from esper.kasmina.host.prewarm import prewarm
from esper.leyline.evidence import SeedObservation
from esper.leyline.reports import Amendment, GraftPlan, Weights
from esper.leyline.slots import SlotSpec
from esper.leyline.state import BlendReport
from esper.user_code.attributes import Held, different, path_in_words


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

    def __init__(self, path: str, slot: nn.Module) -> None:
        super().__init__()
        self.seeds = nn.ModuleList()
        self.path, self.names = path, positional_names(slot)

    def hook(
        self,
        module: nn.Module,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        output: Any,  # Any: as in `slot_output`
    ) -> Any:
        """Return the slot's output with the seeds blended in. This is the forward hook of the slot.

        Raises:
            TaskError: a seed takes padding, and the form of the mask in the call of the slot is not known.
        """
        del module
        part = part_of(output)
        padding = self._padding(args, kwargs, part) if any(seed.takes_padding for seed in self.seeds) else None
        for seed in self.seeds:
            part = seed.forward(part, padding)  # without the hooks of `nn.Module`: a seed has none
        return with_part(output, part)

    def _padding(self, args: tuple[object, ...], kwargs: Mapping[str, object], part: Tensor) -> Tensor | None:
        try:
            return padding_of(self.names, args, kwargs, part)
        except ValueError as error:
            mend = "give the module such a mask, or exclude seeds that take padding from this slot (growth.blueprints)"
            raise TaskError(f"slot {self.path}", str(error), mend) from error


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
        module = self._blueprints.get(plan.blueprint_id).build(spec, seed_key=0, copies=plan.copies)
        own = [*module.parameters(), *module.buffers()]
        if shared := sharing_memory(own, {**self.tensors(), **tensors_of(self._host)}):
            raise _violation(plan, shared)  # loading the weights of the seed would overwrite the host
        try:
            load_weights(module, weights[plan.weights_digest])
        except RuntimeError as error:
            raise SeedBuildFailed(plan.blueprint_id, plan.slot, "load weights") from error
        path = asked_path(self._host, plan.slot)
        prewarm(module, spec, plan.blueprint_id, self._backend if path == COMPILED else None)
        if changed := different(before, self.record(plan)):
            raise _violation(plan, map(path_in_words, changed))
        seed = GraftedSeed(module, plan, spec, path, partial(self.record, plan))
        seed.train(self._host.training)
        if plan.slot not in self._stacks:
            stack = SlotStack(plan.slot, slot := self._host.get_submodule(plan.slot))
            handle = slot.register_forward_hook(stack.hook, with_kwargs=True)
            self._stacks[plan.slot] = stack, handle
        self._stacks[plan.slot][0].seeds.append(seed)
        self._seeds[plan.seed_id] = seed
        self._set_foreign()

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
        self._set_foreign()

    def _set_foreign(self) -> None:
        for seed in self._seeds.values():
            seed.watch.set_foreign(self._foreign_to(seed.plan))

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
            seed.watch.audits = on and seed_id not in leave_out

    def watched(self) -> tuple[str, ...]:
        """Return the ids of the seeds with a watched call. A seed whose slot was skipped is not among them."""
        return tuple(seed_id for seed_id, seed in self._seeds.items() if seed.watch.found.branch is not None)

    def audit(self) -> None:
        """Check that no seed changed the host or another seed in a call or in the backward pass after an audited call,
        and that no gradient of the last audited call reached them.

        The findings on a seed are deleted. If this call raises, the next call continues with the seeds after this seed.

        Raises:
            IsolationViolation: the seed changed something outside the seed; a tensor of the seed shares the memory of a
                foreign tensor; or its gradient reaches a foreign parameter. If a seed is not
                isolated, it is no error that its gradient reaches parameters through the seed's input.
        """
        for seed in self._seeds.values():
            found = seed.watch.take()
            if found.branch is not None:
                found.changed |= self._reached(seed, found.branch, None if seed.plan.isolated else found.cut)
            if found.changed:
                seed.watch.forget_backward()  # the same leak would be found again
                raise _violation(seed.plan, found.changed)

    def _reached(self, seed: GraftedSeed, branch: Tensor, cut: Edge | None) -> set[str]:
        """Return the names of foreign tensors that share memory with a seed, or that the gradient of `branch` reaches.

        Args:
            branch: Output of the seed.
            cut: Edge of the graph at which the search stops.
        """
        foreign, own = self._foreign_to(seed.plan), [*seed.parameters(), *seed.buffers()]
        seed.watch.set_foreign(foreign)  # the model may have replaced a buffer
        parameters = {name: tensor for name, tensor in foreign.items() if isinstance(tensor, nn.Parameter)}
        reached = reachable_parameters(branch, parameters, cut)
        return {*sharing_memory(own, foreign), *reached, *strange_parameters(branch, own, foreign, cut)}

    def record(self, plan: GraftPlan | None = None) -> Held:
        """Return the digests of everything that the seed of `plan` must not change; see `record_of`.

        None: no seed may change it.
        """
        return record_of(self._host, self._seeds_beside(plan), self._batch)

    def _foreign_to(self, plan: GraftPlan) -> dict[str, Tensor]:
        """Return the tensors of the host and of the other seeds.

        If the seed shares a tensor with them, this tensor is included.
        """
        return self._seeds_beside(plan) | tensors_of(self._host)

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
