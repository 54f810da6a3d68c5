"""One seed at its slot: runs the seed's module, checks its output, and blends it into the slot's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import SeedBuildFailed
from esper.kasmina.blueprints.fallbacks import Told, heard
from esper.kasmina.blueprints.padded import seed_output, takes_padding
from esper.kasmina.blueprints.precision import as_slot, dtype_of
from esper.kasmina.host.alpha_record import AlphaRecord
from esper.kasmina.host.blending import blend_of, check_fits, target_alpha
from esper.kasmina.host.call_record import CallRecord, is_recomputing
from esper.kasmina.host.code_path import COMPILED
from esper.kasmina.host.formulas import weight_of
from esper.kasmina.host.prewarm import CHANGES_INPUT
from esper.kasmina.host.seed_watch import SeedWatch
from esper.leyline.evidence import SeedObservation
from esper.leyline.reports import GraftPlan
from esper.leyline.slots import SlotSpec
from esper.user_code.attributes import Held
from esper.user_code.their_code import their_code


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
        record: Callable[[], Held],
    ) -> None:
        """Make the module without attaching the seed.

        Args:
            record: Function that returns the digests of everything that this seed must not change.
        """
        super().__init__()
        self.module = module
        self.takes_padding = takes_padding(module)
        self.blend = blend_of(plan.blend)
        self.plan = plan
        self.asked_path = asked_path
        self.watch = SeedWatch(plan.slot, record)
        self.register_buffer("alpha", torch.zeros((), dtype=dtype_of(spec), device=plan.asked_device))
        self.register_buffer("channels", self.blend.vector(plan.blend, spec))
        self.calls = CallRecord((alpha := self.alpha).dtype, alpha.device, asked_path)
        """The calls since the last observation."""
        self.told = Told(module)
        self.alphas = AlphaRecord()
        """The alphas that were set since the last report."""
        self._theirs = their_code(f"blueprint {plan.blueprint_id}", f"forward at {plan.slot}")

    def forward(self, host: Tensor, padding: Tensor | None) -> Tensor:
        """Blend the seed into the slot's output, [B, ...]; same shape, dtype and device. `padding`: see `seed_output`.

        Raises:
            SeedBuildFailed: the seed's own forward raised, changed its input, or returned an output that does not fit
                the slot.
        """
        counted = self.training and not torch.compiler.is_compiling()  # after an evaluation the host is restored
        counts = self.watch.counts(host) if counted else None
        before = self.watch.before_audited(host) if self.watch.audits else None
        try:
            correction = self._theirs.run(self._correction, host, padding)
        except Exception as error:  # otherwise it would be reported as an error of the host
            raise SeedBuildFailed(self.plan.blueprint_id, self.plan.slot, "forward") from error
        if counts is not None:
            self.watch.compare(counts, host)
        if not is_recomputing():
            if before is None or self.asked_path != COMPILED:  # else the call was made only for the audit
                self.calls.add(self.module, correction)
            if before is not None:
                self.watch.after_audited(before, host, correction)
        return self.blend.formula(host, correction, weight_of(self.alpha, self.channels, host))

    def _correction(self, host: Tensor, padding: Tensor | None) -> Tensor:
        """Return the seed's output. Raises: ValueError: the output does not fit the slot, or see `_run`."""
        correction = as_slot(self._run(self._input(host), padding), host)
        check_fits(host, correction)
        return correction

    def _input(self, host: Tensor) -> Tensor:
        """Return the input of the seed. It is the same in audited calls and in others. So the gradients of a seed that
        uses its input twice are added in the same order.

        An input without a gradient is made contiguous, because the backward pass of GroupNorm crashes the process if
        its input has the memory format `channels_last` and needs no gradient.
        """
        given = host.detach() if self.plan.isolated else host
        if torch.is_grad_enabled() and not given.requires_grad:
            given = given.contiguous()
        return given

    def _run(self, given: Tensor, padding: Tensor | None) -> Any:  # Any: a wrong blueprint may return anything
        """Call the seed. Raises: ValueError: the call changed its input in place."""
        if torch.compiler.is_compiling():
            return seed_output(self.module, given, padding)
        if given.is_inference():
            return heard(self.module, given, padding)
        version = given._version
        output = heard(self.module, given, padding)
        if given._version != version:
            raise ValueError(CHANGES_INPUT)
        return output

    def observe(self) -> SeedObservation:
        """Return the observation since the last call of `observe`, and start a new observation.

        Alpha and the target of alpha are rounded to the buffer's dtype, so that they can be compared. If calls differed
        in dtype, device or path, all values are listed. The devices of the seed's tensors are listed, too.
        """
        target = torch.tensor(target_alpha(self.plan.blend, self.plan.confidence).effective, dtype=self.alpha.dtype)
        counts, shape = self.calls.take()
        dtypes, devices, paths = zip(*counts, strict=True) if counts else ((), (), ())
        lying = [str(tensor.device) for tensor in (*self.module.parameters(), *self.module.buffers())]
        return SeedObservation(
            seed_id=self.plan.seed_id,
            slot=self.plan.slot,
            alpha=float(self.alpha),
            alpha_target=float(target),
            calls=sum(counts.values()),
            output_shape=shape,
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


def _all_of(values: Sequence[str]) -> str | None:
    return " and ".join(dict.fromkeys(values)) or None
