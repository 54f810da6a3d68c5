"""Measured evidence, the input of the gates. `None` means that a value was not measured, never that it is good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from esper.leyline.base import Message
from esper.leyline.slots import SlotSpec
from esper.leyline.stages import Stage


class SampleLosses(Message):
    """Losses of one network on one slice of a shard, per sample, in the order of the slice."""

    shard: str
    fence: int
    losses: tuple[float, ...]
    groups: tuple[int, ...] | None = None
    """Group of each sample; samples of a group are correlated. None: all samples are independent."""


class PairedLosses(Message):
    """Statistics of `d = control - seeded`, paired by sample (averaged per group if there are groups)."""

    shard: str
    fence: int
    count: int
    """Number of pairs, or of groups if samples are grouped."""
    grouped: bool
    mean: float
    sd: float
    """Sample standard deviation (n - 1)."""
    z: float
    """`mean / sqrt(sd^2 / count)`. If sd is 0, z is defined as 0, which is no evidence of an improvement."""
    control_mean: float

    @property
    def relative_gain(self) -> float:
        """Return `mean / |control_mean|`, the share of the control's loss that the seed removed.

        If the control's loss is 0, the gain is 0 for a mean of 0, else infinite.
        """
        if self.control_mean == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / abs(self.control_mean)


def best_first(gain: float) -> float:
    """Return a sort key by which the largest gain comes first, and not-a-number last."""
    return math.inf if math.isnan(gain) else -gain


class PerformanceStatus(StrEnum):
    """Whether a seed runs as requested."""

    NOMINAL = "nominal"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FALLBACK = "fallback"


class Marks(Message):
    """Fallbacks of a seed. Each gate checks the fallbacks first."""

    command_fallbacks: tuple[str, ...] = ()
    """`fallback_marks` of the command that requested the judgement. Empty: the command has no marks, or no command
    requested it."""
    evidence_fallbacks: tuple[str, ...] | None = None
    """Fallbacks that the seed reported during the measurement. A difference between requested and actual execution is a
    fallback, too, unless another check of the gate judges it. None: no call of the seed was observed.
    """


class Stages(Message):
    """The recorded stage of a seed in the live host, now and at the measurement of its evidence."""

    recorded: Stage
    measured: Stage


class SanityProbe(Message):
    """Measurements of a candidate's module on activations of the slot."""

    parameters: int
    parameter_bytes: int
    parameters_finite: bool
    output_shape: tuple[int, ...]
    """Shape of the module's output for one sample, without the batch."""
    slot_shape: tuple[int, ...]
    """Shape of the module's input for one sample. The input is the slot's output."""
    output_dtype: str
    causality_leak: float | None
    """Largest relative change of the output at positions before a perturbed input position. None: the slot is not
    causal."""
    sample_leak: float | None
    """Largest relative change of the output for a sample whose input was not perturbed, while the inputs of other
    samples were perturbed. None: the host mixes samples."""
    told: tuple[str, ...] = ()
    """The fallbacks that the module reported while it was built and measured."""


class SanityEvidence(Message):
    """Evidence for G0."""

    marks: Marks
    blueprint_known: bool
    probe: SanityProbe | None
    """None: the blueprint is not known."""
    spec: SlotSpec | None
    """None: the slot is not known."""
    added_parameters: int
    """Number of parameters of this seed and of all seeds in the host, together."""
    parameter_budget: int
    memory_ratio: float | None
    """Parameter bytes of the seed, divided by those of the host. None: there is no probe."""
    memory_budget: float


class GradientProbe(Message):
    """Measurements from backward passes through an isolated seed. There is one pass for each probe batch, and the
    weights are not updated.
    """

    batches: int
    """Number of backward passes. 0: the seed shares memory with something outside itself, so it was not attached to a
    host."""
    nonfinite: int
    """Number of entries of the seed's gradients that are not finite."""
    norm: float
    """Largest global norm of the seed's gradients over the batches."""
    reachable_host_parameters: tuple[str, ...]
    """Host parameters that the seed's gradient reaches, and tensors whose memory the seed shares."""


class GradientEvidence(Message):
    """Evidence for G1. This evidence has no fallback marks of the command, because G0 has judged the marks."""

    fallbacks: tuple[str, ...] | None
    """As `evidence_fallbacks` in `Marks`."""
    probe: GradientProbe | None


class StabilityEvidence(Message):
    """Evidence for G2."""

    marks: Marks
    steps: int
    required_steps: int
    rank: int | None
    """Rank in its tournament by mean paired gain on the pick shard, 1 is best. None: the fork was dropped at the
    halving."""
    pairs: PairedLosses | None
    loss_variation: float | None
    """Noise of the training loss in the second half of the fork's training. It is the standard deviation of the loss
    about a fitted line, divided by the mean loss.
    """
    leaks: tuple[str, ...] = ()
    """As in `ForkResult`."""
    host_changes: int | None = None
    """Number of plans that were applied to the live host since the fork began. None: the fork is not to be adopted."""
    carried: PairedLosses | None = None
    """For a replica: the G2 evidence of the seed that it repeats. None: not a replica."""
    carried_from: str | None = None
    carried_age_fences: int | None = None
    placebo_gains: tuple[float, ...] | None = None
    """Gains of the placebos of the tournament, on the gate shard; of a replica: of the last tournament that had some. A
    placebo that diverged has an infinite gain. None: the run has no placebos."""
    candidates: int | None = None
    """Number of candidates that the tournaments of the run can judge. None: the run has no placebos."""
    tests: float | None = None
    """Number of tests among which the chance of a false pass is divided. None: it is missing. It is not always whole,
    because a later look counts as a part of a tournament."""


class SeedObservation(Message):
    """The trainer's observation of one grafted seed since the last fence."""

    seed_id: str
    slot: str
    stage: Stage | None = None
    """The seed's recorded stage at the time of the observation."""
    alpha: float
    alpha_target: float
    calls: Annotated[int, Field(ge=0)]
    output_shape: tuple[int, ...] | None
    """Shape of the output of the last call."""
    output_dtype: str | None
    """Type of the output in all calls. If calls differed, the types are joined by "and". `device` and `path` are joined
    in the same way."""
    device: str | None
    """Device of the output and of the seed's tensors."""
    path: str | None
    """Code path of the calls: "eager" or "compiled"."""
    asked_dtype: str
    """Type of the slot's output."""
    asked_device: str
    asked_path: str
    """Code path of the host at the slot."""
    isolated: bool
    """True if the seed's input is detached, so that its gradient does not reach the host."""
    told: tuple[str, ...] = ()
    """The fallbacks that the seed's module reported; see `fell_back`."""
    parameter_bytes: int
    """Bytes of the seed's parameters now."""
    isolation_leaks: tuple[str, ...] | None = None
    """Host parameters that the seed's gradient reaches, as the audits found. None: no audit was made."""

    @property
    def differences(self) -> Mapping[str, str] | None:
        """Return the differences between actual and requested execution, by "dtype", "device" or "path".

        None: no call of the seed was observed.
        """
        if self.output_dtype is None or self.device is None or self.path is None:
            return None
        ran = (
            ("dtype", self.output_dtype, self.asked_dtype),
            ("device", _device(self.device), _device(self.asked_device)),
            ("path", self.path, self.asked_path),
        )
        return {what: f"{what} {seen}, asked {asked}" for what, seen, asked in ran if seen != asked}

    @property
    def fallbacks(self) -> tuple[str, ...] | None:
        """Return the fallbacks that the seed reported, and its `differences`. None: the seed reported nothing, and no
        call of the seed was observed.
        """
        found = self.differences
        if found is None:
            return self.told or None
        return (*self.told, *found.values())


def _device(name: str) -> str:
    return name.removesuffix(":0")  # a requested "cuda" and an observed "cuda:0" are the same device


class HostObservation(Message):
    """The trainer's measurements of the live host at a fence."""

    fence: int
    registered_layers: tuple[str, ...]
    """Paths of the host's modules at this fence."""
    seeds: tuple[SeedObservation, ...]


class InterfaceEvidence(Message):
    """Evidence for G3."""

    marks: Marks
    stages: Stages
    alpha: float
    alpha_target: float
    output_shape: tuple[int, ...] | None
    expected_shape: tuple[int, ...] | None
    output_dtype: str | None
    expected_dtype: str
    device: str | None
    expected_device: str
    required_mesh: tuple[str, ...]
    registered_layers: tuple[str, ...]
    isolation_leaks: tuple[str, ...] | None = None
    """Host parameters that the seed's gradient reaches. None: the seed was never isolated."""


class ImpactEvidence(Message):
    """Evidence for G4."""

    marks: Marks
    stages: Stages
    status: PerformanceStatus | None
    twin_kept: bool
    twin_zs: tuple[float, ...] | None
    """z of the loss difference (twin - live), at each fence since the seed's alpha reached its target. None: there is
    no twin."""
    cost_ratio: float
    """Modelled FLOPs of the seed, divided by those of the host."""
    cost_budget: float
    memory_ratio: float
    """Parameter bytes of the seed, divided by those of the host."""
    memory_budget: float
    isolation_leaks: tuple[str, ...] | None
    """As in `InterfaceEvidence`."""


class ResetProbe(Message):
    """Comparison of the host after a removal with a host that was rebuilt without the seed."""

    seed_left: bool
    """True if the host still has tensors of the seed."""
    optimizers_left: int
    hooks_left: int
    """Number of forward hooks that the seed left at the slot."""
    output_equal: bool
    """True if the slot's output on the next batch is equal bit for bit."""
    flags_equal: bool
    """True if `requires_grad` of every host parameter is equal."""
    names_equal: bool
    """True if the names of modules and of state dict entries are equal."""


class ResetEvidence(Message):
    """Evidence for G5. This evidence has no `Marks`, because no command requests this judgement and no seed runs."""

    probe: ResetProbe | None
