"""The table of blend modes. Each row has a mode's checks for admission, its formula, and its effective alpha.

No other code distinguishes between modes, except that `USE_LOGITS` of `esper.leyline.commands` names the modes that
need logits. If an input of a mode is missing, an error is raised, and no other mode is used instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from esper.errors import DependencyViolationError
from esper.kasmina.blueprints.precision import dtype_of
from esper.kasmina.host.formulas import convex, residual
from esper.kasmina.host.schedules import SCHEDULES, alpha_at, sigmoid
from esper.leyline.commands import MAX_CHANNELS, BlendMode, BlendSpec
from esper.leyline.slots import SlotSpec

HYSTERESIS = 0.02
"""Changes of a seed's confidence (0..1) up to this size are not applied to the live host."""

Problem = tuple[str, str]
"""(description of the fault, the wrong value or the limit)."""


@dataclass(frozen=True)
class Blend:
    """A mode whose weight is only alpha. Its subclasses add a vector or a confidence."""

    formula: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(host, seed, weight) -> blended output; see `formulas.py`."""
    fields: frozenset[str] = frozenset()
    """Fields of a `BlendSpec` for this mode. A field that is in no mode's set is used by all modes."""

    def problems(self, blend: BlendSpec, slots: Iterable[SlotSpec], logits: Sequence[float]) -> Iterable[Problem]:
        """Yield each reason to refuse the fields of this mode or the logits of its command."""
        del blend, slots, logits
        return ()

    def vector(self, blend: BlendSpec, slot: SlotSpec) -> Tensor | None:
        """Return the vector over the channels, broadcastable to one sample of the slot's output.

        None: the mode has no vector.
        """
        del blend, slot
        return None

    def confidence(self, blend: BlendSpec, logits: Sequence[float]) -> float | None:
        """Return the confidence, 0..1, computed from logits. None: the mode has no confidence."""
        del blend, logits
        return None

    def unclamped(self, alpha: float, confidence: float | None) -> float:
        """Return the effective alpha before it is clamped. `alpha` is the scheduled alpha."""
        del confidence
        return alpha

    def bounds(self, blend: BlendSpec) -> tuple[float, float] | None:
        """Return the bounds of the effective alpha. None: the mode does not clamp."""
        del blend
        return None


class ChannelBlend(Blend):
    """A mode whose weight is alpha times a vector over the channels."""

    def problems(self, blend: BlendSpec, slots: Iterable[SlotSpec], logits: Sequence[float]) -> Iterable[Problem]:
        """Yield each fault of the vector. It is required, and must fit every slot."""
        del logits
        length, groups = len(blend.channels), blend.channel_groups
        if not length:
            yield "channels missing", "CHANNEL needs one value per channel, or per group of channels"
        if length > MAX_CHANNELS:
            yield "channels too long", f"{length} over {MAX_CHANNELS}; give channel_groups and a value per group"
        if strange := [value for value in blend.channels if not 0.0 <= value <= 1.0]:  # also true for nan
            yield "channels outside [0, 1]", str(strange[0])
        for slot in slots:
            wanted, what = slot.channels, "channels"
            if groups is not None:
                wanted, what = groups, "channel_groups"
                if groups < 1 or slot.channels % groups:
                    yield "channel_groups must divide the channels", f"{groups} for {slot.channels} of {slot.path}"
            if length != wanted:
                yield "channels of another length", f"{length} for the {wanted} {what} of slot {slot.path}"

    def vector(self, blend: BlendSpec, slot: SlotSpec) -> Tensor:
        """Return the vector with one entry per channel, in the shape `SlotSpec.per_channel` and in the slot's dtype."""
        each = torch.tensor(blend.channels, dtype=torch.float64).repeat_interleave(slot.channels // len(blend.channels))
        return each.to(device=slot.device, dtype=dtype_of(slot)).view(slot.per_channel)


class ConfidenceBlend(Blend):
    """A mode whose alpha is multiplied by a confidence and clamped. The confidence is computed from the policy's
    logits.
    """

    def problems(self, blend: BlendSpec, slots: Iterable[SlotSpec], logits: Sequence[float]) -> Iterable[Problem]:
        """Yield each fault of the logits and of the numbers in the formula."""
        del slots
        if len(logits) < 2:
            found = "none given" if not logits else "one given"
            yield "confidence_logits missing", f"{found}; CONFIDENCE compares the two largest"
        if not all(map(math.isfinite, logits)):
            yield "confidence_logits not finite", str(next(value for value in logits if not math.isfinite(value)))
        if not (math.isfinite(blend.gain) and blend.gain > 0):
            yield "gain not a positive number", str(blend.gain)
        if not math.isfinite(blend.threshold):
            yield "threshold not finite", str(blend.threshold)
        if not 0.0 <= blend.low <= blend.high <= 1.0:
            yield "low and high not in order in [0, 1]", f"{blend.low} and {blend.high}"

    def confidence(self, blend: BlendSpec, logits: Sequence[float]) -> float:
        """Return `sigmoid(gain * (top1 - top2 - threshold))` of the two largest logits."""
        second, first = sorted(logits)[-2:]
        return sigmoid(blend.gain * (first - second - blend.threshold))

    def unclamped(self, alpha: float, confidence: float | None) -> float:
        """Return alpha times the confidence."""
        assert confidence is not None, "a plan without the confidence that its mode needs"
        return alpha * confidence

    def bounds(self, blend: BlendSpec) -> tuple[float, float]:
        """Return the bounds `low` and `high` of the blend."""
        return blend.low, blend.high


BLENDS: Mapping[BlendMode, Blend] = {
    BlendMode.RESIDUAL: Blend(residual),
    BlendMode.CONVEX: Blend(convex),
    BlendMode.CHANNEL: ChannelBlend(convex, frozenset({"channels", "channel_groups"})),
    BlendMode.CONFIDENCE: ConfidenceBlend(convex, frozenset({"gain", "threshold", "low", "high"})),
}
_OF_ONE_MODE = frozenset[str]().union(*(one.fields for one in BLENDS.values()))


def blend_of(spec: BlendSpec) -> Blend:
    """Return the mode's row of the table. Raises: DependencyViolationError: the table has no row for the mode."""
    if spec.mode not in BLENDS:
        raise DependencyViolationError("blend", "blend mode not known", spec.mode)
    return BLENDS[BlendMode(spec.mode)]


def check_blend(spec: BlendSpec, slots: Iterable[SlotSpec], logits: Sequence[float], what: str) -> None:
    """Refuse a blend that cannot be carried out.

    Args:
        slots: The slots for seeds with this blend.
        logits: The logits of the command.
        what: The subject of the error.

    Raises:
        DependencyViolationError: the first problem.
    """
    for missing, detail in _problems(spec, slots, logits):
        raise DependencyViolationError(what, missing, detail)


def _problems(spec: BlendSpec, slots: Iterable[SlotSpec], logits: Sequence[float]) -> Iterable[Problem]:
    if spec.mode not in BLENDS:
        yield "blend mode not known", f"{spec.mode!r}; there are {', '.join(BLENDS)}"
    if spec.schedule not in SCHEDULES:
        yield "blend schedule not known", f"{spec.schedule!r}; there are {', '.join(SCHEDULES)}"
    if not 0.0 <= spec.alpha_target <= 1.0:  # also true for nan
        yield "alpha_target outside [0, 1]", str(spec.alpha_target)
    blend = blend_of(spec)
    fields = BlendSpec.model_fields
    if strange := [name for name in sorted(_OF_ONE_MODE - blend.fields) if getattr(spec, name) != fields[name].default]:
        yield f"{', '.join(strange)} given, not used by the blend mode", spec.mode
    yield from blend.problems(spec, slots, logits)


class Alpha(NamedTuple):
    """The alpha of a seed at an optimizer step, without the vector of CHANNEL."""

    effective: float
    clamped: bool | None
    """True if a bound changed the alpha. None: the mode does not clamp."""


def blend_alpha(step: int, start: int, spec: BlendSpec, confidence: float | None) -> Alpha:
    """Return the alpha of a seed at an optimizer step.

    Args:
        start: First step of the seed's ramp.
        confidence: The applied confidence. None: the mode has no confidence.
    """
    return _effective(alpha_at(step, start, spec), spec, confidence)


def target_alpha(spec: BlendSpec, confidence: float | None) -> Alpha:
    """Return the alpha of a seed at the end of its ramp."""
    return _effective(spec.alpha_target, spec, confidence)


def _effective(alpha: float, spec: BlendSpec, confidence: float | None) -> Alpha:
    blend = blend_of(spec)
    free, bounds = blend.unclamped(alpha, confidence), blend.bounds(spec)
    if bounds is None:
        return Alpha(free, None)
    effective = min(max(free, bounds[0]), bounds[1])
    return Alpha(effective, effective != free)


def next_confidence(spec: BlendSpec, logits: Sequence[float], applied: float | None) -> float | None:
    """Return the confidence for a command's logits. If it differs from `applied` by at most `HYSTERESIS`, return
    `applied`.

    None: the mode has no confidence.
    """
    fresh = blend_of(spec).confidence(spec, logits)
    if fresh is None or (applied is not None and abs(fresh - applied) <= HYSTERESIS):
        return applied
    return fresh


def check_fits(host: Tensor, seed: Tensor) -> None:
    """Refuse a seed's output if a formula would broadcast this output or convert its dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    if host.shape != seed.shape or host.dtype != seed.dtype or host.device != seed.device:
        found = f"{tuple(seed.shape)} {seed.dtype} {seed.device} on {tuple(host.shape)} {host.dtype} {host.device}"
        raise ValueError(f"the seed's output does not fit the host's: {found}")
